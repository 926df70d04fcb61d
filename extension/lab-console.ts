import * as vscode from 'vscode';
import { DEBUG_TYPE } from './debugger.ts';

/** What the kernels of labs write to their consoles: a log for each session, there until its next one. */
export class LabConsoles implements vscode.Disposable {
  readonly #channels = new Map<string, vscode.OutputChannel>();
  /** Sessions that have written already. */
  readonly #begun = new Set<string>();
  readonly #subscription: vscode.Disposable;

  constructor() {
    this.#subscription = vscode.debug.onDidReceiveDebugSessionCustomEvent(({ session, event, body }) => {
      if (session.type !== DEBUG_TYPE || event !== 'mmu/labConsole' || typeof body?.text !== 'string') return;
      const channel = this.#channelOf(session.name);
      if (!this.#begun.has(session.id)) channel.clear();
      this.#begun.add(session.id);
      channel.append(body.text);
    });
  }

  #channelOf(name: string): vscode.OutputChannel {
    let channel = this.#channels.get(name);
    if (!channel) {
      channel = vscode.window.createOutputChannel(`KVM lab: ${name}`);
      this.#channels.set(name, channel);
    }
    return channel;
  }

  dispose(): void {
    this.#subscription.dispose();
    for (const channel of this.#channels.values()) channel.dispose();
  }
}
