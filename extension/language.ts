import * as vscode from 'vscode';
import { LanguageClient, TransportKind } from 'vscode-languageclient/node';

/** Starts the scenario language’s server, and stops it with the extension. */
export function startLanguageClient(context: vscode.ExtensionContext): void {
  const module = vscode.Uri.joinPath(context.extensionUri, 'dist', 'server.cjs').fsPath;
  const client = new LanguageClient(
    'kvm-mmu',
    'KVM MMU Scenarios',
    { module, transport: TransportKind.ipc },
    { documentSelector: [{ language: 'mmu' }] },
  );
  context.subscriptions.push({ dispose: () => void client.dispose() });
  client.start().catch((error: unknown) => {
    void vscode.window.showErrorMessage(
      `The scenario language server did not start: ${error instanceof Error ? error.message : String(error)}`,
    );
  });
}
