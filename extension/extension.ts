import type * as vscode from 'vscode';
import { registerDebugger } from './debugger.ts';
import { registerDecode } from './decode.ts';
import { keepFaultsInSight } from './fault-in-sight.ts';
import { registerHovers } from './hovers.ts';
import { LabConsoles } from './lab-console.ts';
import { startLanguageClient } from './language.ts';
import { Views } from './views.ts';

export function activate(context: vscode.ExtensionContext): void {
  context.subscriptions.push(new Views(context.extensionUri), new LabConsoles(), keepFaultsInSight());
  registerDebugger(context);
  registerHovers(context);
  registerDecode(context);
  startLanguageClient(context);
}
