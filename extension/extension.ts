import * as vscode from 'vscode';

export function activate(context: vscode.ExtensionContext): void {
  context.subscriptions.push(
    vscode.commands.registerCommand('kvm-mmu.version', () => context.extension.packageJSON.version),
  );
}
