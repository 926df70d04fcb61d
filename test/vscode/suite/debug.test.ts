// A person debugs a scenario in a real VS Code: F5, a stop inside the hypervisor's MMU, hovers, steps both ways.
import * as assert from 'node:assert/strict';
import * as vscode from 'vscode';
import { needPage, screenshot } from './page.ts';
import { endSession } from './views.ts';

interface StoppedBody {
  readonly reason: string;
  readonly text: string;
  readonly threadId: number;
}

/** Every stop of every session, in order; `next` waits for one that has not been seen. */
class Stops implements vscode.DebugAdapterTrackerFactory {
  #seen = 0;
  readonly #all: StoppedBody[] = [];

  createDebugAdapterTracker(): vscode.DebugAdapterTracker {
    return {
      onDidSendMessage: (message: { type: string; event?: string; body?: StoppedBody }) => {
        if (message.type === 'event' && message.event === 'stopped' && message.body) this.#all.push(message.body);
      },
    };
  }

  async next(): Promise<StoppedBody> {
    await until('the next stop', () => this.#all.length > this.#seen);
    return this.#all[this.#seen++]!;
  }
}

async function until(what: string, test: () => boolean | Promise<boolean>, limit = 15_000): Promise<void> {
  const end = Date.now() + limit;
  while (!(await test())) {
    assert.ok(Date.now() < end, `waited ${limit / 1000} s for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function example(name: string): Promise<vscode.Uri> {
  const [uri] = await vscode.workspace.findFiles(name);
  assert.ok(uri, `there is no ${name} in the workspace`);
  return uri;
}

async function frames(): Promise<{ name: string; line: number }[]> {
  const { stackFrames } = await vscode.debug.activeDebugSession!.customRequest('stackTrace', { threadId: 1 });
  return stackFrames.map(({ name, line }: { name: string; line: number }) => ({ name, line }));
}

describe('debugging a scenario', () => {
  const stops = new Stops();
  let tracking: vscode.Disposable;

  before(() => {
    tracking = vscode.debug.registerDebugAdapterTrackerFactory('kvm-mmu', stops);
  });
  after(() => tracking.dispose());
  afterEach(async () => {
    await endSession();
    await vscode.commands.executeCommand('workbench.action.closeAllEditors');
  });

  it('F5 without a launch.json stops at the first fault, inside the hypervisor', async function () {
    const page = await needPage(this);
    await vscode.window.showTextDocument(await example('first-fault.mmu'));
    await page.locator('.tab.active[data-resource-name="first-fault.mmu"]').waitFor();
    await vscode.commands.executeCommand('workbench.action.focusActiveEditorGroup');
    await page.keyboard.press('F5');
    const stop = await stops.next();
    assert.equal(stop.reason, 'exception');
    assert.match(stop.text, /^vCPU 0 .*EPT level-\d entry \d+ is not present; handle_ept_violation is next\.$/);
    assert.deepEqual(
      (await frames()).map((frame) => frame.name),
      ['handle_ept_violation', 'page_walk', 'vCPU 0'],
    );
    // What a person sees: the stack, the sentence, the listing with its current line.
    await page.locator('.debug-call-stack .stack-frame', { hasText: 'handle_ept_violation' }).first().waitFor();
    await page.locator('.debug-top-stack-frame-line').first().waitFor();
    await page.locator('.exception-widget', { hasText: 'is not present' }).waitFor();
    await screenshot(page, 'first-stop');
  });

  it('hovers say what an address is mapped to, in the stopped file and in every other', async function () {
    const page = await needPage(this);
    const uri = await example('first-fault.mmu');
    const lines = (await vscode.workspace.openTextDocument(uri)).getText().split('\n');
    await vscode.debug.startDebugging(undefined, {
      type: 'kvm-mmu',
      request: 'launch',
      name: 'hover',
      program: uri.fsPath,
      stopAtEnd: true,
    });
    for (let stop = await stops.next(); !stop.text.startsWith('Everything has ended'); stop = await stops.next()) {
      await vscode.debug.activeDebugSession!.customRequest('continue', { threadId: 1 });
    }
    // Another file: a hover provider, which asks the adapter.
    const other = await vscode.workspace.openTextDocument({
      language: 'c',
      content: 'gpa_t where = 0x200000; /* gva:0x400000 */\n',
    });
    await vscode.window.showTextDocument(other, vscode.ViewColumn.One);
    const hovers = await vscode.commands.executeCommand<vscode.Hover[]>(
      'vscode.executeHoverProvider',
      other.uri,
      new vscode.Position(0, 18),
    );
    const text = hovers
      .flatMap((hover) => hover.contents.map((content) => (content as vscode.MarkdownString).value))
      .join('\n');
    assert.match(text, /gpa 0x20_0000/);
    assert.match(text, /slot 0: gpa 0x0 \+ 64M/);
    // The file of the focused frame: VS Code's own debug hover, which asks `evaluate`.
    const line = lines.findIndex((content) => /^\s*(read|write|fetch) 0x/.test(content));
    const column = lines[line]!.indexOf('0x') + 2;
    const editor = await vscode.window.showTextDocument(uri, { viewColumn: vscode.ViewColumn.One });
    editor.selection = new vscode.Selection(line, column, line, column);
    await vscode.commands.executeCommand('editor.debug.action.showDebugHover');
    const hover = page.locator('.debug-hover-widget').first();
    await hover.waitFor();
    await until('the hover to be filled', async () =>
      /gva 0x[0-9a-f_]+ \(vCPU 0\) → gpa/.test((await hover.textContent()) ?? ''),
    );
    await screenshot(page, 'hover');
    // Never both at once: the provider is silent in the focused frame's file.
    const own = await vscode.commands.executeCommand<vscode.Hover[]>(
      'vscode.executeHoverProvider',
      uri,
      new vscode.Position(line, column),
    );
    const told = own
      .flatMap((entry) => entry.contents.map((content) => (content as vscode.MarkdownString).value))
      .join('\n');
    assert.doesNotMatch(told, /→ hpa|is not present/);
  });

  it('steps into the handler and back again', async () => {
    const uri = await example('first-fault.mmu');
    await vscode.debug.startDebugging(undefined, {
      type: 'kvm-mmu',
      request: 'launch',
      name: 'step',
      program: uri.fsPath,
    });
    await stops.next();
    const before = await frames();
    await vscode.commands.executeCommand('workbench.action.debug.stepInto');
    await stops.next();
    const inside = await frames();
    assert.equal(inside[0]!.name, 'kvm_mmu_page_fault');
    await vscode.commands.executeCommand('workbench.action.debug.stepOver');
    await stops.next();
    await vscode.commands.executeCommand('workbench.action.debug.stepBack');
    await stops.next();
    assert.deepEqual(await frames(), inside);
    await vscode.commands.executeCommand('workbench.action.debug.stepBack');
    await stops.next();
    assert.deepEqual(await frames(), before);
    await vscode.commands.executeCommand('workbench.action.debug.continue');
    const second = await stops.next();
    await vscode.commands.executeCommand('workbench.action.debug.reverseContinue');
    await stops.next();
    assert.deepEqual(await frames(), before);
    await vscode.commands.executeCommand('workbench.action.debug.continue');
    assert.equal((await stops.next()).text, second.text);
  });

  it('a breakpoint in a listing stops in that step', async function () {
    const page = await needPage(this);
    const uri = await example('first-fault.mmu');
    await vscode.debug.startDebugging(undefined, {
      type: 'kvm-mmu',
      request: 'launch',
      name: 'listing',
      program: uri.fsPath,
    });
    await stops.next();
    // The stop opened the handler's listing in the editor; the same editor shows any frame that is selected.
    const find = () =>
      vscode.workspace.textDocuments.find(
        (document) => document.uri.scheme === 'debug' && document.uri.path.endsWith('handle_ept_violation.kvmfn'),
      );
    await until('the listing to open', () => find() !== undefined);
    const listing = find()!;
    assert.match(listing.getText(), /handle_ept_violation:\n {2}translate/);
    const line = listing
      .getText()
      .split('\n')
      .findIndex((text) => text.startsWith('  finish'));
    const point = new vscode.SourceBreakpoint(new vscode.Location(listing.uri, new vscode.Position(line, 0)));
    vscode.debug.addBreakpoints([point]);
    try {
      await page.locator('.cgmr.codicon-debug-breakpoint').first().waitFor();
      await vscode.commands.executeCommand('workbench.action.debug.continue');
      const stop = await stops.next();
      assert.equal(stop.reason, 'breakpoint');
      assert.match(stop.text, /^Breakpoint: .*handle_ept_violation, finish/);
    } finally {
      vscode.debug.removeBreakpoints([point]);
    }
  });

  it('a configuration of a launch.json is used as it is written', async () => {
    const [folder] = vscode.workspace.workspaceFolders!;
    const uri = vscode.Uri.joinPath(folder!.uri, '.vscode', 'launch.json');
    // biome-ignore lint/suspicious/noTemplateCurlyInString: VS Code puts the folder's path there.
    const program = '${workspaceFolder}/npt.mmu';
    const configurations = [
      { type: 'kvm-mmu', request: 'launch', name: 'From launch.json', program, stopOnEntry: true },
    ];
    await vscode.workspace.fs.writeFile(uri, Buffer.from(JSON.stringify({ version: '0.2.0', configurations })));
    try {
      await until(
        'VS Code to read launch.json',
        () =>
          (vscode.workspace.getConfiguration('launch', folder!.uri).get<unknown[]>('configurations') ?? []).length ===
          1,
      );
      assert.equal(await vscode.debug.startDebugging(folder, 'From launch.json'), true);
      const stop = await stops.next();
      await until('the session to be active', () => vscode.debug.activeDebugSession?.name === 'From launch.json');
      assert.equal(stop.reason, 'entry');
      assert.match(stop.text, /^vCPU 0 has not begun: line \d+ is next\.$/);
    } finally {
      await vscode.workspace.fs.delete(uri);
    }
  });

  it('a launch that cannot be says why', async () => {
    const session = vscode.debug.startDebugging(undefined, {
      type: 'kvm-mmu',
      request: 'launch',
      name: 'bad',
      program: '/nowhere.mmu',
    });
    await session.then(undefined, () => {});
    assert.equal(vscode.debug.activeDebugSession, undefined);
  });
});

describe('scenarios in the editor', () => {
  it('have diagnostics, code lenses, completion and hovers', async () => {
    const document = await vscode.workspace.openTextDocument({
      language: 'mmu',
      content: 'machine x86-64 {\n  memory 0x123 +64M\n}\nvcpu 0 {\n  cr0.\n}\n',
    });
    await vscode.window.showTextDocument(document);
    await until('diagnostics', () => vscode.languages.getDiagnostics(document.uri).length > 0);
    const good = await vscode.workspace.openTextDocument(await example('first-fault.mmu'));
    await vscode.window.showTextDocument(good);
    await until('code lenses', async () => {
      const lenses = await vscode.commands.executeCommand<vscode.CodeLens[]>(
        'vscode.executeCodeLensProvider',
        good.uri,
        10,
      );
      return lenses.some((lens) => lens.command?.command === 'kvm-mmu.debugScenario');
    });
    assert.deepEqual(vscode.languages.getDiagnostics(good.uri), []);
    const list = await vscode.commands.executeCommand<vscode.CompletionList>(
      'vscode.executeCompletionItemProvider',
      document.uri,
      new vscode.Position(4, 6),
    );
    assert.ok(
      list.items.some((item) => item.label === 'wp'),
      list.items.map((item) => item.label).join(' '),
    );
    await vscode.commands.executeCommand('workbench.action.closeAllEditors');
  });

  it('Decode Entry shows an entry without a session', async function () {
    const page = await needPage(this);
    const done = vscode.commands.executeCommand('kvm-mmu.decodeEntry');
    await page.locator('.quick-input-box input').fill('0x8000000000200163');
    await page.keyboard.press('Enter');
    await page
      .locator('.quick-input-list .monaco-list-row', { hasText: 'x86-64, 4-level: PTE (level 1)' })
      .first()
      .waitFor();
    await screenshot(page, 'decode-formats');
    await page.keyboard.press('Enter');
    await page.locator('.quick-input-list .monaco-list-row', { hasText: 'no execute' }).first().waitFor();
    await screenshot(page, 'decode-fields');
    await page.keyboard.press('Escape');
    await done;
  });
});
