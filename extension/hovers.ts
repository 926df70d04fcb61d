import * as vscode from 'vscode';
import { DEBUG_TYPE } from './debugger.ts';
import { addressAt, expressionAt } from './operands.ts';

/**
 * Hovers while a session is stopped. In the file of the focused frame VS Code asks the adapter itself (`evaluate`), and
 * only needs to be told which text is meant; in every other file a hover provider asks. Never both.
 */
export function registerHovers(context: vscode.ExtensionContext): void {
  context.subscriptions.push(
    vscode.languages.registerEvaluatableExpressionProvider([{ language: 'mmu' }, { language: 'kvm-listing' }], {
      provideEvaluatableExpression(document, position) {
        const found = expressionAt(document.lineAt(position.line).text, position.character, document.languageId);
        if (!found) return undefined;
        const range = new vscode.Range(position.line, found.start, position.line, found.end);
        return new vscode.EvaluatableExpression(range, found.text);
      },
    }),
    vscode.languages.registerHoverProvider([{ scheme: 'file' }, { scheme: 'untitled' }, { scheme: 'vscode-remote' }], {
      provideHover,
    }),
  );
}

async function provideHover(
  document: vscode.TextDocument,
  position: vscode.Position,
): Promise<vscode.Hover | undefined> {
  const session = vscode.debug.activeDebugSession;
  if (session?.type !== DEBUG_TYPE) return undefined;
  const found = addressAt(document.lineAt(position.line).text, position.character, document.languageId);
  if (!found) return undefined;
  try {
    if ((await focusedPath(session)) === document.uri.fsPath) return undefined;
    const { lines } = (await session.customRequest('mmu/hover', { text: found.text })) as { lines: string[] };
    if (lines.length === 0) return undefined;
    const [first, ...rest] = lines;
    const text = new vscode.MarkdownString().appendCodeblock([first, ...rest].join('\n'), 'text');
    return new vscode.Hover(text, new vscode.Range(position.line, found.start, position.line, found.end));
  } catch {
    // The machine runs, or the session is ending: there is nothing to say.
    return undefined;
  }
}

/** The file of the frame that the user looks at; undefined when it is a listing or nothing is selected. */
async function focusedPath(session: vscode.DebugSession): Promise<string | undefined> {
  const item = vscode.debug.activeStackItem;
  if (!(item instanceof vscode.DebugStackFrame) || item.session !== session) return undefined;
  const { stackFrames } = (await session.customRequest('stackTrace', { threadId: item.threadId })) as {
    stackFrames: { id: number; source?: { path?: string } }[];
  };
  const top = stackFrames.find((frame) => frame.id === item.frameId) ?? stackFrames[0];
  return top?.source?.path;
}
