import { randomBytes } from 'node:crypto';
import * as vscode from 'vscode';
import type { TableQuery } from '../engine/queries/answers.ts';
import { parseShowTable, type ShowTable } from '../engine/queries/protocol.ts';
import { DEBUG_TYPE } from './debugger.ts';

const KINDS = {
  'page-tables': 'Page Tables',
  walk: 'Walk',
  recording: 'Recording',
  'root-cache': 'Root Cache',
  attributes: 'Memory Attributes',
  comparison: 'Comparison',
} as const;
type ViewKind = keyof typeof KINDS;

/** What a view may send: a request for the adapter, which checks it, or one for its host, such as to lead to another view. */
interface Watch {
  readonly type: 'watch';
  readonly id: string;
}

function isWatch(message: unknown): message is Watch {
  return (
    typeof message === 'object' &&
    message !== null &&
    'type' in message &&
    message.type === 'watch' &&
    'id' in message &&
    typeof message.id === 'string'
  );
}

function typeOf(message: unknown): unknown {
  return typeof message === 'object' && message !== null && 'type' in message ? message.type : undefined;
}

/** A view that opens while VS Code is showing a stop closes the stop's exception widget: it waits this long, in ms. */
const FIRST_STOP_DELAY = 600;

/** How many questions one view may keep open: more than any screen shows. */
const MAX_WATCHES = 2000;

/** A webview and the session it shows: relays questions and answers, and asks again when the session changes. */
class View {
  readonly panel: vscode.WebviewPanel;
  readonly #watches = new Map<string, unknown>();
  #session: vscode.DebugSession | undefined;
  #pinned = false;
  readonly #kind: ViewKind;
  readonly #showTable: (from: View, table: TableQuery) => void;
  /** The page has said something, so that it hears. */
  #loaded = false;
  /** What it is to hear then. */
  #waiting: ShowTable | undefined;

  constructor(
    kind: ViewKind,
    extensionUri: vscode.Uri,
    column: vscode.ViewColumn,
    showTable: (from: View, table: TableQuery) => void,
  ) {
    this.#kind = kind;
    this.#showTable = showTable;
    const root = vscode.Uri.joinPath(extensionUri, 'dist', 'webview');
    this.panel = vscode.window.createWebviewPanel(
      `kvm-mmu.${kind}`,
      KINDS[kind],
      { viewColumn: column, preserveFocus: true },
      { enableScripts: true, localResourceRoots: [root], retainContextWhenHidden: true },
    );
    this.panel.webview.html = html(this.panel.webview, root, kind);
    this.panel.webview.onDidReceiveMessage((message: unknown) => this.#received(message));
  }

  get session(): vscode.DebugSession | undefined {
    return this.#session;
  }

  /** Shows another session from now on, unless the view is pinned to one that still runs. */
  follow(session: vscode.DebugSession | undefined): void {
    if (session === this.#session || (this.#pinned && this.#session)) return;
    const old = this.#session;
    this.#session = session;
    if (old)
      for (const id of this.#watches.keys())
        void Promise.resolve(old.customRequest('mmu/watch', { type: 'unwatch', id: this.#remoteId(id) })).catch(
          () => {},
        );
    if (session) for (const message of this.#watches.values()) void this.#ask(message as Watch);
    else void this.panel.webview.postMessage({ type: 'ended' });
  }

  ended(session: vscode.DebugSession): void {
    if (session !== this.#session) return;
    this.#session = undefined;
    this.#pinned = false;
    this.#title();
    void this.panel.webview.postMessage({ type: 'ended' });
  }

  /** An event from the adapter; answers of other views are left out. */
  event(session: vscode.DebugSession, body: unknown): void {
    if (session !== this.#session) return;
    if (typeOf(body) !== 'changed') {
      void this.panel.webview.postMessage(body);
      return;
    }
    const { answers } = body as { answers: { id: string; answer: unknown }[] };
    const prefix = this.#remoteId('');
    const own = answers
      .filter(({ id }) => id.startsWith(prefix))
      .map(({ id, answer }) => ({ id: id.slice(prefix.length), answer }));
    if (own.length > 0) void this.panel.webview.postMessage({ type: 'changed', answers: own });
  }

  /** Leads to a table, once the page has loaded. */
  show(message: ShowTable): void {
    if (this.#loaded) void this.panel.webview.postMessage(message);
    else this.#waiting = message;
  }

  togglePin(): void {
    this.#pinned = !this.#pinned;
    this.#title();
    if (!this.#pinned)
      this.follow(vscode.debug.activeDebugSession?.type === DEBUG_TYPE ? vscode.debug.activeDebugSession : undefined);
  }

  #title(): void {
    this.panel.title =
      this.#pinned && this.#session ? `${KINDS[this.#kind]} (pinned: ${this.#session.name})` : KINDS[this.#kind];
  }

  /** Ids are the view's own; the adapter sees them with the view's kind in front. */
  #remoteId(id: string): string {
    return `${this.#kind}/${id}`;
  }

  #received(message: unknown): void {
    this.#loaded = true;
    if (this.#waiting) void this.panel.webview.postMessage(this.#waiting);
    this.#waiting = undefined;
    const table = parseShowTable(message)?.table;
    if (table) this.#showTable(this, table);
    else if (isWatch(message)) {
      if (this.#watches.size >= MAX_WATCHES && !this.#watches.has(message.id)) {
        this.#error(message.id, `a view may keep ${MAX_WATCHES} questions open; close some`);
        return;
      }
      this.#watches.set(message.id, message);
      void this.#ask(message);
    } else if (typeOf(message) === 'unwatch') {
      const id = (message as { id?: unknown }).id;
      if (typeof id !== 'string') return;
      this.#watches.delete(id);
      void Promise.resolve(
        this.#session?.customRequest('mmu/watch', { type: 'unwatch', id: this.#remoteId(id) }),
      ).catch(() => {});
    } else if (typeOf(message) === 'seek') {
      void Promise.resolve(this.#session?.customRequest('mmu/watch', message)).catch((error: Error) =>
        vscode.window.showErrorMessage(error.message),
      );
    } else console.warn(`kvm-mmu: the ${this.#kind} view sent a message of an unknown type, which is ignored`);
  }

  async #ask(message: Watch): Promise<void> {
    const session = this.#session;
    if (!session) return;
    try {
      const reply = (await session.customRequest('mmu/watch', { ...message, id: this.#remoteId(message.id) })) as {
        answer?: unknown;
        stop?: unknown;
        running?: boolean;
      };
      if (session !== this.#session) return;
      if (reply.stop !== undefined) void this.panel.webview.postMessage({ type: 'stopped', stop: reply.stop });
      else if (reply.running) void this.panel.webview.postMessage({ type: 'running' });
      if (reply.answer !== undefined)
        void this.panel.webview.postMessage({ type: 'changed', answers: [{ id: message.id, answer: reply.answer }] });
    } catch (error) {
      this.#error(message.id, (error as Error).message);
    }
  }

  #error(id: string, message: string): void {
    void this.panel.webview.postMessage({ type: 'changed', answers: [{ id, answer: { kind: 'error', message } }] });
  }
}

/** The views that are open. They follow the active session; the walk opens by itself at a session's first stop, for an image the page tables, for a recording its own. */
export class Views implements vscode.Disposable {
  readonly #extensionUri: vscode.Uri;
  readonly #open = new Map<ViewKind, View>();
  readonly #stopped = new Set<string>();
  readonly #subscriptions: vscode.Disposable[];

  constructor(extensionUri: vscode.Uri) {
    this.#extensionUri = extensionUri;
    this.#subscriptions = [
      vscode.commands.registerCommand('kvm-mmu.showPageTables', () => this.show('page-tables')),
      vscode.commands.registerCommand('kvm-mmu.showWalk', () => this.show('walk')),
      vscode.commands.registerCommand('kvm-mmu.showRecording', () => this.show('recording')),
      vscode.commands.registerCommand('kvm-mmu.showRootCache', () => this.show('root-cache')),
      vscode.commands.registerCommand('kvm-mmu.showAttributes', () => this.show('attributes')),
      vscode.commands.registerCommand('kvm-mmu.showComparison', () => this.show('comparison')),
      vscode.commands.registerCommand('kvm-mmu.pinView', () =>
        [...this.#open.values()].find((view) => view.panel.active)?.togglePin(),
      ),
      vscode.debug.onDidChangeActiveDebugSession((session) => {
        // Between two sessions of one debug run VS Code has none active for a moment.
        if (session?.type === DEBUG_TYPE) for (const view of this.#open.values()) view.follow(session);
      }),
      vscode.debug.onDidTerminateDebugSession((session) => {
        this.#stopped.delete(session.id);
        for (const view of this.#open.values()) view.ended(session);
      }),
      vscode.debug.onDidReceiveDebugSessionCustomEvent(({ session, event, body }) => {
        if (session.type !== DEBUG_TYPE || event !== 'mmu/changed') return;
        if (typeOf(body) === 'stopped' && !this.#stopped.has(session.id)) {
          this.#stopped.add(session.id);
          setTimeout(() => this.#openFirst(session), FIRST_STOP_DELAY);
        }
        for (const view of this.#open.values()) view.event(session, body);
      }),
    ];
  }

  #openFirst(session: vscode.DebugSession): void {
    const { image, trace } = session.configuration;
    const kind = trace !== undefined ? 'recording' : image !== undefined ? 'page-tables' : 'walk';
    if (this.#open.has(kind) || !this.#stopped.has(session.id)) return;
    if (vscode.workspace.getConfiguration('kvm-mmu').get('openWalkAtFirstStop', true)) this.show(kind, session);
  }

  show(kind: ViewKind, session = vscode.debug.activeDebugSession): void {
    const open = this.#open.get(kind);
    if (open) {
      open.panel.reveal(undefined, true);
      return;
    }
    // Beside the scenario; a second view joins the first there.
    const other = [...this.#open.values()][0]?.panel.viewColumn;
    const view = new View(kind, this.#extensionUri, other ?? vscode.ViewColumn.Beside, (from, table) =>
      this.#showTable(from, table),
    );
    this.#open.set(kind, view);
    view.panel.onDidDispose(() => {
      this.#open.delete(kind);
      view.follow(undefined);
    });
    if (session?.type === DEBUG_TYPE) view.follow(session);
  }

  /** From a view to a table of its session, in the Page Tables view. */
  #showTable(from: View, table: TableQuery): void {
    const { session } = from;
    if (!session) return;
    this.show('page-tables', session);
    const view = this.#open.get('page-tables')!;
    view.follow(session);
    if (view.session !== session) {
      void vscode.window.showInformationMessage(
        `The Page Tables view is pinned to ${view.session?.name ?? 'another session'}, which has not this table.`,
      );
      return;
    }
    view.panel.reveal(undefined, false);
    view.show({ type: 'show-table', table });
  }

  dispose(): void {
    for (const subscription of this.#subscriptions) subscription.dispose();
    for (const view of this.#open.values()) view.panel.dispose();
  }
}

/** The page of a view: scripts and styles of this extension only, and nothing from anywhere else. */
function html(webview: vscode.Webview, root: vscode.Uri, kind: ViewKind): string {
  const nonce = randomBytes(16).toString('base64');
  const file = (name: string) => webview.asWebviewUri(vscode.Uri.joinPath(root, name)).toString();
  const policy = `default-src 'none'; script-src 'nonce-${nonce}'; style-src ${webview.cspSource}`;
  return `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="${file(`${kind}.css`)}">
<title>${KINDS[kind]}</title>
</head>
<body>
<main id="view"></main>
<script nonce="${nonce}" src="${file(`${kind}.js`)}"></script>
</body>
</html>`;
}
