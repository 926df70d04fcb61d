// What tests of the views share: a session's stops, and what a person does around them.
import * as assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Frame, Page } from 'playwright-core';
import * as vscode from 'vscode';
import { colourThemes, screenshot, setColourTheme, webviewFrame } from './page.ts';

/** The sentences of a session's stops, as the adapter sends them to VS Code. */
export class Stops implements vscode.Disposable {
  readonly sentences: string[] = [];
  readonly #tracker = vscode.debug.registerDebugAdapterTrackerFactory('kvm-mmu', {
    createDebugAdapterTracker: () => ({
      onDidSendMessage: (message: { event?: string; body?: { description?: string } }) => {
        if (message.event === 'stopped') this.sentences.push(message.body?.description ?? '');
      },
    }),
  });

  /** Waits for the stop of this number, counted from 1. */
  async number(count: number, timeout?: number): Promise<string> {
    await until(() => this.sentences.length >= count, `stop ${count}; there were ${this.sentences.length}`, timeout);
    return this.sentences[count - 1]!;
  }

  dispose(): void {
    this.#tracker.dispose();
  }
}

export async function until(
  condition: () => boolean | Promise<boolean>,
  what: string,
  timeout = 15_000,
): Promise<void> {
  const deadline = Date.now() + timeout;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`not within ${timeout} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Why no lab can be had here. */
export function withoutLab(): string | undefined {
  if (spawnSync('qemu-system-x86_64', ['--version']).error) return 'there is no qemu-system-x86_64';
  return existsSync(join(__dirname, '../../../native/build/lab-init')) ? undefined : 'the helper is not built';
}

export async function launch(name: string): Promise<void> {
  const [program] = await vscode.workspace.findFiles(name);
  assert.ok(program, `the examples have no ${name}`);
  await vscode.window.showTextDocument(program, { viewColumn: vscode.ViewColumn.One });
  const started = await vscode.debug.startDebugging(undefined, {
    type: 'kvm-mmu',
    request: 'launch',
    name: 't',
    program: program.fsPath,
  });
  assert.ok(started, 'the session did not start');
}

/** Whether VS Code shows the session's last stop, or has nothing to show. Frames of stops before have other ids. */
async function isShown(session: vscode.DebugSession): Promise<boolean> {
  const item = vscode.debug.activeStackItem;
  let frames: { id: number; source?: object }[];
  try {
    ({ stackFrames: frames } = await session.customRequest('stackTrace', { threadId: item?.threadId ?? 1 }));
  } catch {
    return true;
  }
  if (!frames.some(({ source }) => source)) return true; // an image of memory
  return item instanceof vscode.DebugStackFrame && frames.some(({ id }) => id === item.frameId);
}

/**
 * Ends the session as a person does, who has seen it stop: a session that ends while VS Code is bringing its stop into
 * focus keeps the focus for ever, and no later session's stop is shown.
 */
export async function endSession(): Promise<void> {
  const session = vscode.debug.activeDebugSession;
  if (session) {
    await until(() => isShown(session), 'VS Code shows the stop');
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  // A session that has only just begun may not be known here yet: it is stopped in the next round.
  await until(async () => {
    await vscode.debug.stopDebugging();
    return vscode.debug.activeDebugSession === undefined;
  }, 'the session ends');
}

export function scenario(name: string, text: string): string {
  const path = join(mkdtempSync(join(tmpdir(), 'kvm-mmu-')), name);
  writeFileSync(path, text);
  return path;
}

/** Runs a scenario through all its faults, and stops at its end; the walk has opened by itself by then. */
export async function debugToEnd(page: Page, program: string, stops: Stops): Promise<void> {
  await vscode.window.showTextDocument(vscode.Uri.file(program), { viewColumn: vscode.ViewColumn.One });
  const config = { type: 'kvm-mmu', request: 'launch', name: 't', program, stopAtEnd: true };
  assert.ok(await vscode.debug.startDebugging(undefined, config), 'the session did not start');
  for (let count = 1; !(await stops.number(count)).startsWith('Everything has ended'); count++)
    await vscode.debug.activeDebugSession!.customRequest('continue', { threadId: 1 });
  await webviewFrame(page, { viewType: 'kvm-mmu.walk' });
}

export const sentenceOf = (frame: Frame) => frame.locator('.stop-line .sentence').textContent();

export async function shows(frame: Frame, sentence: string): Promise<void> {
  await until(async () => (await sentenceOf(frame)) === sentence, `the view shows “${sentence}”`);
}

export async function next(): Promise<void> {
  await vscode.commands.executeCommand('workbench.action.debug.continue');
}

/** Leaves the page to the views: no side bar, no panel, the scenario narrow. */
export async function makeRoom(): Promise<void> {
  for (const command of ['closeSidebar', 'closePanel', 'closeAuxiliaryBar'])
    await vscode.commands.executeCommand(`workbench.action.${command}`);
}

/** Pictures to be looked at, in each theme; with $KVM_MMU_ONE_THEME one, in the theme that is on. */
export async function pictures(page: Page, name: string): Promise<void> {
  if (process.env.KVM_MMU_ONE_THEME) {
    await screenshot(page, name);
    return;
  }
  for (const theme of colourThemes) {
    await setColourTheme(theme);
    await page.waitForTimeout(300);
    await screenshot(page, `${name}-${theme.replace('Default ', '').replace(' ', '-').toLowerCase()}`);
  }
  await setColourTheme('Default Dark Modern');
}

/** The stops of the session that a test of {@link describeViews} has. */
export let stops: Stops;

/** Tests each of which has a session of its own. */
export function describeViews(name: string, body: () => void): void {
  describe(name, () => {
    beforeEach(() => {
      stops = new Stops();
    });

    afterEach(async () => {
      await endSession();
      await vscode.commands.executeCommand('workbench.action.closeAllEditors');
      stops.dispose();
    });

    body();
  });
}
