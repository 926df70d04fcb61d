import * as vscode from 'vscode';
import { DEBUG_TYPE } from './debugger.ts';
import { addressAt, expressionAt } from './operands.ts';

/** The thread of each session's last stop: what VS Code focuses when nothing else is selected. */
const stoppedThreads = new Map<string, number>();

/**
 * Hovers while a session is stopped. In the file of the focused frame VS Code asks the adapter itself (`evaluate`), and
 * only needs to be told which text is meant; in every other file a hover provider asks. Never both.
 */
export function registerHovers(context: vscode.ExtensionContext): void {
  context.subscriptions.push(
    vscode.debug.onDidReceiveDebugSessionCustomEvent(({ session, event, body }) => {
      if (session.type === DEBUG_TYPE && event === 'mmu/changed' && body.type === 'stopped')
        stoppedThreads.set(session.id, body.stop.task + 1);
    }),
    vscode.debug.onDidTerminateDebugSession((session) => stoppedThreads.delete(session.id)),
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
    if ((await focusedPath(session)) === document.uri.path) return undefined;
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

/** The file of the frame that the user looks at; undefined when nothing is selected. */
async function focusedPath(session: vscode.DebugSession): Promise<string | undefined> {
  const item = vscode.debug.activeStackItem;
  const threadId = item?.session.id === session.id ? item.threadId : stoppedThreads.get(session.id);
  if (threadId === undefined) return undefined;
  const { stackFrames } = (await session.customRequest('stackTrace', { threadId })) as {
    stackFrames: { id: number; source?: { path?: string } }[];
  };
  const focused =
    item instanceof vscode.DebugStackFrame ? stackFrames.find((frame) => frame.id === item.frameId) : undefined;
  const path = (focused ?? stackFrames[0])?.source?.path;
  if (path === undefined) return undefined;
  // VS Code hands a path over as the adapter gave it, or as a URI, depending on where the extension host runs.
  return (/^[a-z][\w+.-]+:\/\//i.test(path) ? vscode.Uri.parse(path) : vscode.Uri.file(path)).path;
}
