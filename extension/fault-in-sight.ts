import * as vscode from 'vscode';
import { DEBUG_TYPE } from './debugger.ts';

/** The parts of the protocol's messages that are looked at here. */
interface Message {
  readonly type: string;
  readonly seq: number;
  readonly request_seq?: number;
  readonly event?: string;
  readonly command?: string;
  readonly arguments?: { readonly startFrame?: number; readonly levels?: number };
  readonly body?: { readonly reason?: string; readonly stackFrames?: readonly { readonly id: number }[] };
}

/**
 * Keeps the widget that says why a guest faulted in sight. VS Code shows it only while the frame in focus is the very
 * object in its call stack, and where a stack trace takes longer than some 50 ms (a busy or remote machine) its Call
 * Stack view asks for the same frames again, and they replace those that got the focus. The top frame gets it again then.
 */
class FaultInSight implements vscode.DebugAdapterTracker {
  readonly #session: vscode.DebugSession;
  readonly #subscription: vscode.Disposable;
  /** Requests for the top of the stack that wait for their answers. */
  readonly #asked = new Set<number>();
  #ofFault = false;
  /** How often the top of the stack was asked for at this stop. */
  #times = 0;
  #topFrame: number | undefined;

  constructor(session: vscode.DebugSession) {
    this.#session = session;
    this.#subscription = vscode.debug.onDidChangeActiveStackItem(() => this.#look());
  }

  onWillReceiveMessage({ type, seq, command, arguments: args }: Message): void {
    // VS Code itself names a range; extensions that ask change nothing in its call stack.
    if (type !== 'request' || command !== 'stackTrace' || args?.startFrame !== 0 || !args.levels) return;
    this.#asked.add(seq);
    this.#times++;
  }

  onDidSendMessage(message: Message): void {
    if (message.type === 'event' && message.event === 'stopped') {
      this.#asked.clear();
      this.#times = 0;
      this.#ofFault = message.body?.reason === 'exception';
    }
    if (message.type !== 'response' || !this.#asked.delete(message.request_seq!)) return;
    this.#topFrame = message.body?.stackFrames?.[0]?.id;
    this.#look();
  }

  #look(): void {
    if (!this.#ofFault || this.#times < 2 || this.#asked.size > 0) return;
    const item = vscode.debug.activeStackItem;
    if (!(item instanceof vscode.DebugStackFrame)) return;
    // A frame that a person chose meanwhile stays in focus.
    if (item.session.id !== this.#session.id || item.frameId !== this.#topFrame) return;
    this.#times = 1; // once more would replace the frames again
    void vscode.commands.executeCommand('workbench.action.debug.callStackTop');
  }

  onExit(): void {
    this.#subscription.dispose();
  }
}

export function keepFaultsInSight(): vscode.Disposable {
  return vscode.debug.registerDebugAdapterTrackerFactory(DEBUG_TYPE, {
    createDebugAdapterTracker: (session) => new FaultInSight(session),
  });
}
