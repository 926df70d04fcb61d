// The views, as a person meets them in a session.
import * as assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Frame, Page } from 'playwright-core';
import * as vscode from 'vscode';
import { x86Image } from '../../image-fixture.ts';
import { colourThemes, needPage, screenshot, setColourTheme, webviewFrame } from './page.ts';

/** The sentences of a session's stops, as the adapter sends them to VS Code. */
class Stops implements vscode.Disposable {
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

async function until(condition: () => boolean | Promise<boolean>, what: string, timeout = 15_000): Promise<void> {
  const deadline = Date.now() + timeout;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`not within ${timeout} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Why no lab can be had here. */
function withoutLab(): string | undefined {
  if (spawnSync('qemu-system-x86_64', ['--version']).error) return 'there is no qemu-system-x86_64';
  return existsSync(join(__dirname, '../../../native/build/lab-init')) ? undefined : 'the helper is not built';
}

async function launch(name: string): Promise<void> {
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

/** Elements whose text does not fit into them, or that reach beyond the page. Runs in the page. */
function outside(): string[] {
  return [...document.querySelectorAll<HTMLElement>('.root-cache *:not(.offscreen)')]
    .filter((element) => element.clientWidth > 0)
    .filter(
      (element) => element.scrollWidth > element.clientWidth + 1 || element.getBoundingClientRect().right > innerWidth,
    )
    .map((element) => `${element.className}: ${element.textContent?.slice(0, 40)}`);
}

/** A 32-bit guest, whose tables of level 2 are shadowed in four quarters, beside one of 64 bits. */
const LEGACY = `machine x86-64 {
  memory 0 +32M
  second-stage shadow
}
guest legacy 32-bit {
  map 0x400000 -> 0x200000 +16K rwx user
  map 0x80000000 -> 0x300000 +16K rwx user
}
guest a {
  map 0x400000 -> 0x200000 +64K rwx user
}
vcpu 0 in legacy {
  read 0x400000
  write 0x80000000
  entry 0x401000 level 1 = 0
  read 0x400000
}
vcpu 1 in a {
  write 0x400000
}
`;

/** L1, whose guest writes where L1's own tables let it only read. */
const NESTED = `machine x86-64 {
  memory 0 +32M
}
nested stage {
  tables at 0x800000
  map 0 -> 0x1000000 +64K r-x
  map 0x10000 -> 0x1010000 +64K r--
  map 0x200000 -> 0x1200000 2M
}
guest outer {
  map 0x400000 -> 0x200000 +64K
}
guest inner in stage {
  tables at 0x280000
  map 0x800000 -> 0x10000 +64K
}
vcpu 0 in outer {
  write 0x400000
  enter inner {
    read 0x800000
    write 0x800000
  }
}
`;

function scenario(name: string, text: string): string {
  const path = join(mkdtempSync(join(tmpdir(), 'kvm-mmu-')), name);
  writeFileSync(path, text);
  return path;
}

/** A guest that changes its CR3 and CR0.WP, and goes back; the machine's lines say what KVM does. */
function rootsScenario(name: string, machine: string): string {
  return scenario(
    name,
    `machine x86-64 {
  memory 0 +16M
  ${machine}
}
guest a {
  map 0x400000 -> 0x200000 +64K rwx user
}
guest b {
  map 0x400000 -> 0x300000 +64K rwx user
}
vcpu 0 in a {
  write 0x400000
  cr3 = b
  write 0x400000
  cr0.wp = 0
  read 0x400000
  cr0.wp = 1
  cr3 = a
  read 0x401000
}
`,
  );
}

/** Runs a scenario through all its faults, and stops at its end; the walk has opened by itself by then. */
async function debugToEnd(page: Page, program: string, stops: Stops): Promise<void> {
  await vscode.window.showTextDocument(vscode.Uri.file(program), { viewColumn: vscode.ViewColumn.One });
  const config = { type: 'kvm-mmu', request: 'launch', name: 't', program, stopAtEnd: true };
  assert.ok(await vscode.debug.startDebugging(undefined, config), 'the session did not start');
  for (let count = 1; !(await stops.number(count)).startsWith('Everything has ended'); count++)
    await vscode.debug.activeDebugSession!.customRequest('continue', { threadId: 1 });
  await webviewFrame(page, { viewType: 'kvm-mmu.walk' });
}

/** Which columns of two pictures (PNG, base64) of the same size differ. */
async function changedColumns(
  page: Page,
  one: string,
  other: string,
): Promise<{ columns: number; first: number; last: number; width: number }> {
  return page.evaluate(
    async (pictures) => {
      const [a, b] = await Promise.all(
        pictures.map(async (picture) => {
          const bytes = Uint8Array.from(atob(picture), (letter) => letter.charCodeAt(0));
          const bitmap = await createImageBitmap(new Blob([bytes], { type: 'image/png' }));
          const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext('2d')!;
          context.drawImage(bitmap, 0, 0);
          return context.getImageData(0, 0, bitmap.width, bitmap.height);
        }),
      );
      const columns = new Set<number>();
      for (let at = 0; at < a!.data.length; at++)
        if (a!.data[at] !== b!.data[at]) columns.add(Math.floor(at / 4) % a!.width);
      return { columns: columns.size, first: Math.min(...columns), last: Math.max(...columns), width: a!.width };
    },
    [one, other],
  );
}

const sentenceOf = (frame: Frame) => frame.locator('.stop-line .sentence').textContent();

async function shows(frame: Frame, sentence: string): Promise<void> {
  await until(async () => (await sentenceOf(frame)) === sentence, `the view shows “${sentence}”`);
}

async function next(): Promise<void> {
  await vscode.commands.executeCommand('workbench.action.debug.continue');
}

/** Leaves the page to the views: no side bar, no panel, the scenario narrow. */
async function makeRoom(): Promise<void> {
  for (const command of ['closeSidebar', 'closePanel', 'closeAuxiliaryBar'])
    await vscode.commands.executeCommand(`workbench.action.${command}`);
}

async function pictures(page: Page, name: string): Promise<void> {
  for (const theme of colourThemes) {
    await setColourTheme(theme);
    await page.waitForTimeout(300);
    await screenshot(page, `${name}-${theme.replace('Default ', '').replace(' ', '-').toLowerCase()}`);
  }
  await setColourTheme('Default Dark Modern');
}

describe('the views', () => {
  let stops: Stops;

  beforeEach(() => {
    stops = new Stops();
  });

  afterEach(async () => {
    await vscode.debug.stopDebugging();
    await vscode.commands.executeCommand('workbench.action.closeAllEditors');
    stops.dispose();
  });

  it('show where the first fault’s walk ended, and follow the session to the next', async function () {
    const page = await needPage(this);
    await launch('first-fault.mmu');
    const first = await stops.number(1);
    await makeRoom();
    const walk = await webviewFrame(page, { viewType: 'kvm-mmu.walk' });
    await shows(walk, first);
    await walk.locator('button.cell').first().waitFor();
    // EPT is empty: the very first reference ends the walk.
    assert.equal(await walk.locator('button.cell').count(), 1);
    assert.equal(await walk.locator('.cell.here').count(), 1);
    assert.equal(await walk.locator('.cell.here .cell-words').textContent(), 'RWX=0');
    assert.equal(await walk.locator('.cell.unreached').count(), 24);
    await pictures(page, 'walk-first');

    for (let fault = 2; fault <= 5; fault++) {
      await next();
      await shows(walk, await stops.number(fault));
    }
    // The guest's tables are known by now: 4 × (4 + 1) references, then the page's, up to the missing entry.
    await until(async () => (await walk.locator('button.cell').count()) > 20, 'more than 20 references');
    const reached = await walk.locator('button.cell').count();
    assert.ok(reached < 25, `${reached} references`);
    const here = walk.locator('.cell.here');
    assert.equal(await here.getAttribute('data-number'), `${reached}`);
    await pictures(page, 'walk-last');

    await here.focus();
    await page.keyboard.press('ArrowLeft');
    assert.equal(await walk.locator('.cell.selected').getAttribute('data-number'), `${reached - 1}`);
    assert.match((await walk.locator('.details h2').textContent()) ?? '', /^EPT /);

    await walk.locator('input[type=text]').fill('401000');
    await page.keyboard.press('Enter');
    await walk.locator('.walk-sentence').waitFor();
    // Another address is not here and now.
    await until(async () => (await walk.locator('.cell.here').count()) === 0, 'no accent on an asked walk');
    await walk.getByText('Back to the stop').click();
    await walk.locator('.cell.here').waitFor();
  });

  it('show the tables of an image, which does not run', async function () {
    const page = await needPage(this);
    // A real kernel's memory where there is one, else a few pages.
    const kernel = join(__dirname, '../../guests/out/x86-4level/core.elf');
    const image = existsSync(kernel) ? kernel : join(mkdtempSync(join(tmpdir(), 'kvm-mmu-')), 'image');
    if (image !== kernel) writeFileSync(image, x86Image());
    const registers = image === kernel ? {} : { cr3: '0x1000' };
    const config = { type: 'kvm-mmu', request: 'launch', name: 'image', image, registers };
    assert.ok(await vscode.debug.startDebugging(undefined, config), 'the session did not start');
    await makeRoom();
    const tables = await webviewFrame(page, { viewType: 'kvm-mmu.page-tables' });
    await until(async () => /It does not run\.$/.test((await sentenceOf(tables)) ?? ''), 'what the image is');
    await tables.locator('.tree-row.table').first().waitFor();
    await tables.locator('.search input').fill('0x401000');
    await page.keyboard.press('Enter');
    await until(
      async () => /^PTE 1/.test((await tables.locator('.details h2').textContent()) ?? ''),
      'the details of PTE 1',
    );
    await page.waitForTimeout(500);
    await pictures(page, 'image-tables');
    await vscode.commands.executeCommand('kvm-mmu.showWalk');
    const walk = await webviewFrame(page, { viewType: 'kvm-mmu.walk' });
    await walk.getByLabel('Privilege').selectOption({ label: 'CPL 3' });
    await walk.locator('input[type=text]').fill('401000');
    await page.keyboard.press('Enter');
    await until(
      async () =>
        / is gpa 0x[0-9a-f]+: 4 memory references\.$/.test((await walk.locator('.walk-sentence').textContent()) ?? ''),
      'the walk of 0x401000',
    );
    await pictures(page, 'image-walk');
    await vscode.debug.stopDebugging();
    await walk.getByText('The session has ended').waitFor();
  });

  it('show a real guest at its page faults', async function () {
    const page = await needPage(this);
    const elf = join(__dirname, '../../../examples/guests/build/faults.elf');
    const missing = existsSync('/dev/kvm') ? (existsSync(elf) ? undefined : 'the guest is not built') : 'no /dev/kvm';
    if (missing !== undefined) {
      this.test!.title += ` (${missing})`;
      this.skip();
    }
    const config = { type: 'kvm-mmu', request: 'launch', name: 'guest', target: 'kvm', guest: elf, memory: '16M' };
    assert.ok(await vscode.debug.startDebugging(undefined, config), 'the session did not start');
    assert.equal(
      await stops.number(1),
      'vCPU 0 read gva 0x10000000000: PTE 0 is not present; the guest gets #PF with error code 0x0, its handler is next.',
    );
    const walk = await webviewFrame(page, { viewType: 'kvm-mmu.walk' });
    await shows(walk, await stops.number(1));
    await walk.locator('.cell.here').waitFor();
    await vscode.commands.executeCommand('workbench.view.debug');
    await page.waitForTimeout(1500);
    await pictures(page, 'kvm-first');
    for (let fault = 2; fault <= 9; fault++) {
      await next();
      await shows(walk, await stops.number(fault));
    }
    await makeRoom();
    await vscode.commands.executeCommand('kvm-mmu.showPageTables');
    const tables = await webviewFrame(page, { viewType: 'kvm-mmu.page-tables' });
    await shows(tables, await stops.number(9));
    await tables.locator('.tree-row.here').waitFor();
    await pictures(page, 'kvm-tables');
    await vscode.debug.stopDebugging();
    await tables.getByText('The session has ended').waitFor();
  });

  it('show a scenario that runs on real KVM', async function () {
    const page = await needPage(this);
    const [program] = await vscode.workspace.findFiles('on-kvm.mmu');
    const built = existsSync(join(__dirname, '../../../native/build/kvm-mmu-helper'));
    const missing = existsSync('/dev/kvm') ? (built ? undefined : 'the helper is not built') : 'no /dev/kvm';
    if (missing !== undefined) {
      this.test!.title += ` (${missing})`;
      this.skip();
    }
    await vscode.window.showTextDocument(program!, { viewColumn: vscode.ViewColumn.One });
    const config = { type: 'kvm-mmu', request: 'launch', name: 'on KVM', target: 'kvm', program: program!.fsPath };
    assert.ok(await vscode.debug.startDebugging(undefined, config), 'the session did not start');
    assert.match(await stops.number(1), /^vCPU 0 wrote gva 0x400000 at CPL 3: PTE 0 is for the supervisor/);
    const walk = await webviewFrame(page, { viewType: 'kvm-mmu.walk' });
    await shows(walk, await stops.number(1));
    await vscode.commands.executeCommand('workbench.view.debug');
    await page.waitForTimeout(1000);
    await pictures(page, 'kvm-scenario');
    await vscode.debug.stopDebugging();
    await walk.getByText('The session has ended').waitFor();
  });

  it('show a recording, any moment of which is a click away', async function () {
    const page = await needPage(this);
    const trace = join(__dirname, '../../trace/shadow.dat');
    const config = { type: 'kvm-mmu', request: 'launch', name: 'recording', trace };
    assert.ok(await vscode.debug.startDebugging(undefined, config), 'the session did not start');
    assert.match(await stops.number(1), /^shadow\.dat: \d+ events of .*It can be stepped and run both ways\.$/);
    const recording = await webviewFrame(page, { viewType: 'kvm-mmu.recording' });
    await recording.locator('.fault-row').first().waitFor();
    await makeRoom();
    await pictures(page, 'recording-first');
    await recording.locator('.fault-row').nth(5).click();
    await stops.number(2);
    await recording.locator('.fault-row.here').waitFor();
    const happened = await recording.locator('.where').textContent();
    assert.match(happened ?? '', /fault 6 of \d+/);
    await recording.getByText('Next fault').click();
    await stops.number(3);
    await until(async () => /fault 7 of/.test((await recording.locator('.where').textContent()) ?? ''), 'fault 7');
    await vscode.commands.executeCommand('kvm-mmu.showPageTables');
    const tables = await webviewFrame(page, { viewType: 'kvm-mmu.page-tables' });
    await tables.locator('.certainty').first().waitFor();
    await pictures(page, 'recording-tables');
    await vscode.debug.stopDebugging();
    await tables.getByText('The session has ended').waitFor();
  });

  it('show what upstream KVM has built, in a lab', async function () {
    this.timeout(120_000);
    const page = await needPage(this);
    const elf = join(__dirname, '../../../examples/guests/build/user.elf');
    const missing = withoutLab() ?? (existsSync(elf) ? undefined : 'the guest is not built');
    if (missing !== undefined) {
      this.test!.title += ` (${missing})`;
      this.skip();
    }
    const lab = { kernel: 'linux-image-amd64', params: { npt: 1 } };
    const config = { type: 'kvm-mmu', request: 'launch', name: 'lab', guest: elf, memory: '16M', lab };
    assert.ok(await vscode.debug.startDebugging(undefined, config), 'the session did not start');
    const sentence = await stops.number(1, 60_000);
    assert.match(sentence, /the guest gets #PF with error code/);
    const walk = await webviewFrame(page, { viewType: 'kvm-mmu.walk' });
    await shows(walk, sentence);
    await makeRoom();
    await pictures(page, 'lab-walk');
    await vscode.commands.executeCommand('kvm-mmu.showPageTables');
    const tables = await webviewFrame(page, { viewType: 'kvm-mmu.page-tables' });
    const picker = tables.locator('.root-picker');
    await until(async () => /KVM's NPT root/.test((await picker.textContent()) ?? ''), 'the root that KVM has');
    const option = await picker.locator('option', { hasText: "KVM's NPT root" }).getAttribute('value');
    await picker.selectOption(option!);
    await tables.getByText('Read from the kernel.').waitFor();
    await pictures(page, 'lab-tables');
    await vscode.debug.stopDebugging();
    await tables.getByText('The session has ended').waitFor();
  });

  it('show the roots that upstream KVM itself keeps with shadow paging, read in a lab', async function () {
    this.timeout(120_000);
    const page = await needPage(this);
    const missing = withoutLab();
    if (missing !== undefined) {
      this.test!.title += ` (${missing})`;
      this.skip();
    }
    const program = rootsScenario('lab-roots.mmu', 'second-stage shadow');
    await vscode.window.showTextDocument(vscode.Uri.file(program), { viewColumn: vscode.ViewColumn.One });
    const config = {
      ...{ type: 'kvm-mmu', request: 'launch', name: 't', program, target: 'kvm', stopAtEnd: true },
      lab: { kernel: 'linux-image-amd64', params: { npt: 0 } },
    };
    assert.ok(await vscode.debug.startDebugging(undefined, config), 'the session did not start');
    for (let count = 1; !(await stops.number(count, 60_000)).startsWith('Everything has ended'); count++)
      await vscode.debug.activeDebugSession!.customRequest('continue', { threadId: 1 });
    await webviewFrame(page, { viewType: 'kvm-mmu.walk' });
    await makeRoom();
    await vscode.commands.executeCommand('kvm-mmu.showRootCache');
    const cache = await webviewFrame(page, { viewType: 'kvm-mmu.root-cache' });
    await cache.getByText('Read from the kernel.').waitFor();
    assert.match((await cache.locator('.card.current .reuse').textContent()) ?? '', /fits what is wanted/);
    await pictures(page, 'root-cache-lab');
    assert.equal(await cache.locator('.card:not(.empty)').count(), 2, 'CR0.WP gave up what was before; two CR3s since');
  });

  it('show which roots KVM keeps, what led to them, and the tables of each', async function () {
    const page = await needPage(this);
    const program = rootsScenario('roots.mmu', 'second-stage shadow\n  policy roots = posted');
    await debugToEnd(page, program, stops);
    await makeRoom();
    await vscode.commands.executeCommand('kvm-mmu.showRootCache');
    const cache = await webviewFrame(page, { viewType: 'kvm-mmu.root-cache' });
    await shows(cache, stops.sentences.at(-1)!);
    const card = (place: number) => cache.locator(`.card[data-place="${place}"]`);
    await card(0).locator('.role-cell').first().waitFor();
    assert.equal(await cache.locator('.card').count(), 4);
    const hpas = async (): Promise<string[]> =>
      Promise.all(
        [0, 1, 2, 3].map(async (place) =>
          (await card(place).locator('.facts dd').first().isVisible())
            ? ((await card(place).locator('.facts dd').first().textContent()) ?? '')
            : '',
        ),
      );
    const now = await hpas();
    assert.deepEqual(now, ['100_1000', '100_9000', '101_1000', '']);
    // What differs is said in words and figures: CR0.WP of the root that was made without it.
    assert.equal(await card(0).locator('.differs').count(), 0);
    assert.deepEqual(await card(2).locator('.differs').allTextContents(), ['cr0_wp0 ≠ 1']);
    assert.deepEqual(await cache.locator('.card .reuse').allTextContents(), [
      'fits what is wanted',
      'would not be reused: another CR3',
      'would not be reused: another cr0_wp',
    ]);
    const cause = () => cache.locator('.cause').textContent();
    assert.match((await cause()) ?? '', /^After cr3 bf_f000 → ff_f000: previous 2 becomes the current root/);
    await pictures(page, 'root-cache');

    // Back through the history by keyboard: to the write of CR0.WP, and to the first moment.
    const slider = cache.locator('input[type=range]');
    await slider.focus();
    for (let press = 0; press < 5; press++) await page.keyboard.press('ArrowLeft');
    await cache.locator('.as-of').getByText('As of step').waitFor();
    assert.match((await cause()) ?? '', /^After cr0 8005_0033 → 8004_0033 \(wp 1 → 0\): /);
    assert.match((await cause()) ?? '', /the wanted role changes from 0x3704 to 0x1704/);
    assert.deepEqual((await hpas()).slice(0, 2), ['100_9000', '100_1000']);
    await page.waitForTimeout(600);
    await pictures(page, 'root-cache-then');
    await page.keyboard.press('Home');
    await until(async () => (await cache.locator('.card.empty').count()) === 4, 'no root at the first moment');
    await page.keyboard.press('Escape');
    await until(async () => (await hpas()).join() === now.join(), 'the roots of now');
    assert.equal(await cache.locator('.as-of').textContent(), '');

    // Cards move; without motion they are where they belong at once.
    const moving = () => cache.locator('.card.moving').count();
    await slider.focus();
    await page.keyboard.press('ArrowLeft');
    assert.ok((await moving()) > 0, 'cards move');
    await until(async () => (await moving()) === 0, 'the cards have arrived');
    await page.emulateMedia({ reducedMotion: 'reduce' });
    await page.keyboard.press('End');
    assert.equal(await moving(), 0, 'nothing moves');
    assert.deepEqual(await hpas(), now);
    await page.emulateMedia({ reducedMotion: null });

    // The pages, by gfn.
    await cache.getByLabel('Filter pages by gfn').fill('bfc');
    await until(async () => (await cache.locator('.page-row').count()) === 2, 'two pages of gfn 0xbfc');
    await cache.getByLabel('Filter pages by gfn').fill('');
    await cache.locator('.page-rows').focus();
    await page.keyboard.press('End');
    assert.equal(await cache.locator('.page-row.selected').getAttribute('data-hpa'), '0x1001000');
    await page.keyboard.press('Home');
    assert.equal(await cache.locator('.page-row.selected').getAttribute('data-hpa'), '0x1017000');

    // From a page below a root, and from a card, to the tables.
    await page.keyboard.press('Enter');
    const tables = await webviewFrame(page, { viewType: 'kvm-mmu.page-tables' });
    await until(
      async () => /101_1000|1011000/.test((await tables.locator('.root-picker option:checked').textContent()) ?? ''),
      'the tables of the root that leads to the page',
    );
    await tables.locator('.tree-row.selected').waitFor();
    assert.match((await tables.locator('.details').textContent()) ?? '', /101_7000/);
    await page.waitForTimeout(500);
    await screenshot(page, 'root-cache-jump');
    await vscode.commands.executeCommand('kvm-mmu.showRootCache');
    await card(1).getByText('Show tables').click();
    await until(
      async () => /1009000/.test((await tables.locator('.root-picker option:checked').textContent()) ?? ''),
      'the tables of the root before',
    );

    await vscode.commands.executeCommand('kvm-mmu.showRootCache');
    await vscode.debug.stopDebugging();
    await cache.getByText('The session has ended').waitFor();
  });

  it('show that EPT’s root has another role than the processor, and stays', async function () {
    const page = await needPage(this);
    const program = rootsScenario('ept.mmu', 'second-stage tdp ept 4-level\n  policy roots = posted');
    await vscode.window.showTextDocument(vscode.Uri.file(program), { viewColumn: vscode.ViewColumn.One });
    // A view that is open before its session shows it all the same.
    await vscode.commands.executeCommand('kvm-mmu.showRootCache');
    const cache = await webviewFrame(page, { viewType: 'kvm-mmu.root-cache' });
    await cache.getByText('No session').waitFor();
    await debugToEnd(page, program, stops);
    await makeRoom();
    await vscode.commands.executeCommand('kvm-mmu.showRootCache');
    await cache.locator('.card.usable').first().waitFor();
    assert.match((await cache.locator('.cause').textContent()) ?? '', /the processor’s role changes; the roots stay/);
    assert.match((await cache.locator('.roles').textContent()) ?? '', /direct0 ≠ 1/);
    assert.equal(await cache.locator('.card.empty').count(), 3);
    await pictures(page, 'root-cache-ept');
  });

  it('show L1’s roots and its guest’s apart, L1’s own tables, and a fault that is L1’s', async function () {
    const page = await needPage(this);
    const program = scenario('nested.mmu', NESTED);
    await vscode.window.showTextDocument(vscode.Uri.file(program), { viewColumn: vscode.ViewColumn.One });
    const config = { type: 'kvm-mmu', request: 'launch', name: 't', program };
    assert.ok(await vscode.debug.startDebugging(undefined, config), 'the session did not start');
    let sentence = await stops.number(1);
    for (let count = 2; !sentence.includes('L1 gets'); count++) {
      await vscode.debug.activeDebugSession!.customRequest('continue', { threadId: 1 });
      sentence = await stops.number(count);
    }
    assert.match(sentence, /^vCPU 0 in inner wrote gpa 0x10000: EPT PTE 16 does not allow writing in L1’s tables/);
    await makeRoom();
    const walk = await webviewFrame(page, { viewType: 'kvm-mmu.walk' });
    await shows(walk, sentence);
    await pictures(page, 'nested-walk');
    await vscode.commands.executeCommand('kvm-mmu.showRootCache');
    const cache = await webviewFrame(page, { viewType: 'kvm-mmu.root-cache' });
    await shows(cache, sentence);
    const picker = cache.locator('select[aria-label="vCPU and MMU"]');
    assert.deepEqual(await picker.locator('option').allTextContents(), [
      'vCPU 0, root_mmu',
      'vCPU 0, guest_mmu (walked now)',
    ]);
    await picker.selectOption({ label: 'vCPU 0, guest_mmu (walked now)' });
    await cache.getByText('nested_mmu: CPU role of L2').waitFor();
    assert.match((await cache.locator('.card.current .facts').textContent()) ?? '', /EPTP80_005e/);
    assert.match((await cache.locator('.cause').textContent()) ?? '', /^After L1 runs inner: /);
    await pictures(page, 'root-cache-nested');
    await cache.locator('.card.current [data-action^="tables"]').click();
    const tables = await webviewFrame(page, { viewType: 'kvm-mmu.page-tables' });
    const roots = tables.locator('.root-picker option');
    await until(async () => (await roots.count()) === 4, 'four sets of tables');
    assert.deepEqual(
      (await roots.allTextContents()).map((text) => text.replace(/:.*/, '')),
      [
        'Guest tables of inner',
        'L1’s EPT tables stage for inner',
        'EPT root at hpa 0x1000000',
        'Shadow EPT root at hpa 0x1006000 of EPTP 0x80005e',
      ],
    );
    await pictures(page, 'nested-tables');
    const own = await tables.locator('.root-picker option', { hasText: 'L1’s EPT' }).getAttribute('value');
    await tables.locator('.root-picker').selectOption(own!);
    await tables.getByRole('button', { name: 'Fault' }).click();
    await tables.locator('.tree-row', { hasText: 'PTE 16' }).getByText('fault').waitFor();
    await pictures(page, 'nested-tables-own');
  });

  it('compare what policies cost on the session’s scenario, and what they leave', async function () {
    const page = await needPage(this);
    await launch('nested.mmu');
    await stops.number(1);
    await webviewFrame(page, { viewType: 'kvm-mmu.walk' });
    await makeRoom();
    await vscode.commands.executeCommand('kvm-mmu.showComparison');
    const view = await webviewFrame(page, { viewType: 'kvm-mmu.comparison' });
    await view.locator('.costs tbody tr').first().waitFor();
    assert.deepEqual(await view.locator('.costs thead th').allTextContents(), ['count', 'before', 'posted', 'today']);
    const row = (name: string) => view.locator('.costs tbody tr', { has: view.getByText(name, { exact: true }) });
    assert.deepEqual(await row('roots.unloads').locator('.value').allTextContents(), ['221', '0', '0']);
    await pictures(page, 'comparison');
    await view.getByText('for each change of mode').click();
    await until(
      async () => (await row('roots.unloads').locator('.value').first().textContent()) === '1.00',
      'what one change of mode costs',
    );
    await view.locator('[data-value="posted"]').uncheck();
    await until(async () => (await view.locator('.costs thead th').count()) === 3, 'two runs');
    await pictures(page, 'comparison-two');
    await view.locator('select').selectOption('page-split');
    await view.getByText('They cost the same.').waitFor();
    await vscode.debug.stopDebugging();
    await launch('quadrant.mmu');
    await view.locator('select').selectOption('quadrant');
    await view.getByText(/other leaves/).waitFor();
    await pictures(page, 'comparison-leaves');
  });

  it('say of a session without KVM that it tells of no roots', async function () {
    const page = await needPage(this);
    const image = join(mkdtempSync(join(tmpdir(), 'kvm-mmu-')), 'image');
    writeFileSync(image, x86Image());
    await vscode.commands.executeCommand('kvm-mmu.showRootCache');
    const cache = await webviewFrame(page, { viewType: 'kvm-mmu.root-cache' });
    await cache.getByText('No session').waitFor();
    const config = { type: 'kvm-mmu', request: 'launch', name: 'image', image, registers: { cr3: '0x1000' } };
    assert.ok(await vscode.debug.startDebugging(undefined, config), 'the session did not start');
    await cache.getByText('this machine does not tell of KVM’s roots').waitFor();
  });

  it('show the four tables of a 32-bit guest’s root, in a narrow column too', async function () {
    const page = await needPage(this);
    await debugToEnd(page, scenario('legacy.mmu', LEGACY), stops);
    await makeRoom();
    await vscode.commands.executeCommand('kvm-mmu.showRootCache');
    const cache = await webviewFrame(page, { viewType: 'kvm-mmu.root-cache' });
    await cache.locator('.quarters li').nth(3).waitFor();
    assert.match((await cache.locator('.quarters li').nth(2).textContent()) ?? '', /gfn 0x1fff.*4-byte q2/);
    assert.match((await cache.locator('.page-row[data-hpa="0x1012000"]').textContent()) ?? '', /unsync/);
    assert.match((await cache.locator('.page-row[data-hpa="0x1010000"] .page-quadrant').textContent()) ?? '', /3/);
    await cache.locator('.page-list').scrollIntoViewIfNeeded();
    await pictures(page, 'root-cache-pages');
    await cache.getByLabel('vCPU').selectOption({ label: 'vCPU 1' });
    await until(async () => (await cache.locator('.quarters').count()) === 0, 'the roots of the other vCPU');
    await cache.getByLabel('vCPU').selectOption({ label: 'vCPU 0' });

    await page.setViewportSize({ width: 860, height: 1600 });
    await until(async () => (await cache.evaluate(() => innerWidth)) <= 420, 'a narrow view');
    await page.waitForTimeout(600);
    assert.deepEqual(await cache.evaluate(outside), []);
    await pictures(page, 'root-cache-narrow');
    await page.setViewportSize({ width: 1400, height: 900 });
    await cache.locator('.quarters .link').first().click();
    const tables = await webviewFrame(page, { viewType: 'kvm-mmu.page-tables' });
    await tables.locator('.tree-row.selected').waitFor();
    await vscode.commands.executeCommand('kvm-mmu.showRootCache');
  });

  it('show private and shared memory, and what each step of a conversion makes of it', async function () {
    const page = await needPage(this);
    const [program] = await vscode.workspace.findFiles('conversion.mmu');
    const text = (await vscode.workspace.openTextDocument(program!)).getText().split('\n');
    const line = text.findIndex((each) => each.includes('convert 0x10000 +4K shared'));
    const breakpoint = new vscode.SourceBreakpoint(new vscode.Location(program!, new vscode.Position(line, 0)));
    vscode.debug.addBreakpoints([breakpoint]);
    await launch('conversion.mmu');
    await stops.number(1);
    await webviewFrame(page, { viewType: 'kvm-mmu.walk' });
    await vscode.commands.executeCommand('kvm-mmu.showAttributes');
    const memory = await webviewFrame(page, { viewType: 'kvm-mmu.attributes' });
    await shows(memory, stops.sentences.at(-1)!);
    const canvas = memory.locator('.map-canvas');
    await canvas.waitFor();
    await makeRoom();
    await page.waitForTimeout(800);
    await pictures(page, 'attributes-first');

    // Into the first conversion, past the faults before it.
    for (let count = stops.sentences.length; !(await stops.number(count)).includes('vmm'); count++) {
      assert.ok(count < 30, 'the conversion is never reached');
      await next();
    }
    vscode.debug.removeBreakpoints([breakpoint]);
    const row = (name: string) => memory.locator(`.page-facts dd[data-row="${name}"]`).textContent();
    const happening = async (): Promise<string> => (await memory.locator('.happening').textContent()) ?? '';
    const stepTo = async (words: RegExp): Promise<void> => {
      for (let step = 0; !words.test(await happening()); step++) {
        assert.ok(step < 40, `${words} is never reached: ${stops.sentences.at(-1)}`);
        const count = stops.sentences.length;
        // The VMM is the second thread.
        await vscode.debug.activeDebugSession!.customRequest('stepIn', { threadId: 2 });
        await shows(memory, await stops.number(count + 1));
        await page.waitForTimeout(100);
      }
    };
    await stepTo(/^vmm makes 1_0000 \+4K shared: in kvm_vm_set_mem_attributes, next is store/);
    await makeRoom();

    // By keyboard: to what happens now, to its page, and to keep what is told of it.
    await canvas.focus();
    await page.keyboard.press('End');
    await until(
      async () => (await canvas.getAttribute('aria-description')) === '68K from 0x8000',
      'the map is at the conversion',
    );
    await page.keyboard.press('ArrowRight');
    const title = () => memory.locator('.details h2').textContent();
    await until(async () => (await title()) === 'Page at 1_0000', 'the page in the middle');
    await page.keyboard.press('ArrowRight');
    await until(async () => (await title()) === 'Page at 1_1000', 'the next page');
    await page.keyboard.press('Control+ArrowLeft');
    await page.keyboard.press('ArrowLeft');
    await memory.locator('.search input').fill('0x10000');
    await page.keyboard.press('Enter');
    await until(async () => (await title()) === 'Page at 1_0000', 'the page that was found');
    await until(async () => /^private/.test((await row('attribute')) ?? ''), 'it is private yet');
    assert.match((await row('conversion')) ?? '', /^vmm makes gpa 1_0000 \+4K shared; .*this page is next$/);
    assert.match((await row('invalidation')) ?? '', /^gpa 0x0 \+2M is being invalidated/);
    await pictures(page, 'attributes-conversion');

    // A step changes this page's attribute, and on the picture nothing outside of its column.
    const picture = (): Promise<string> =>
      canvas.evaluate((element) => (element as HTMLCanvasElement).toDataURL().split(',')[1]!);
    await canvas.evaluate((element) => element.blur());
    await page.waitForTimeout(600);
    const before = await picture();
    await stepTo(/next is (?!store\b)/);
    await until(async () => (await row('attribute')) === 'shared', 'it is shared');
    await page.waitForTimeout(400);
    const changed = await changedColumns(page, before, await picture());
    assert.ok(changed.columns > 0, 'the page looks as before');
    assert.ok(
      changed.last - changed.first < 1.6 * (changed.width / 17),
      `columns ${changed.first} to ${changed.last} of ${changed.width}`,
    );
    await pictures(page, 'attributes-stored');

    // To the entry of this page among KVM's tables, and back.
    await memory.locator('.show-table').first().click();
    const tables = await webviewFrame(page, { viewType: 'kvm-mmu.page-tables' });
    await tables.locator('.tree-row.selected').waitFor();
    await vscode.commands.executeCommand('kvm-mmu.showAttributes');

    await vscode.debug.stopDebugging();
    await memory.getByText('The session has ended').waitFor();
  });

  it('go through the history of private memory, and say where there is none', async function () {
    const page = await needPage(this);
    const [program] = await vscode.workspace.findFiles('conversion.mmu');
    await debugToEnd(page, program!.fsPath, stops);
    await vscode.commands.executeCommand('kvm-mmu.showAttributes');
    const memory = await webviewFrame(page, { viewType: 'kvm-mmu.attributes' });
    await shows(memory, stops.sentences.at(-1)!);
    await makeRoom();
    const attribute = memory.locator('.page-facts dd[data-row="attribute"]');
    await memory.locator('.search input').fill('0x10000');
    await page.keyboard.press('Enter');
    await until(async () => (await attribute.textContent()) === 'shared', 'it is shared at the end');
    const slider = memory.locator('input[type=range]');
    const count = Number(await slider.getAttribute('max'));
    assert.ok(count > 20, `${count} moments`);
    await slider.focus();
    await page.keyboard.press('Home');
    await memory.locator('.as-of').getByText('As of step 0').waitFor();
    await until(async () => /^private/.test((await attribute.textContent()) ?? ''), 'it was launched as private');
    for (let moment = 0; moment < 7; moment++) await page.keyboard.press('ArrowRight');
    await until(
      async () =>
        /^1_0000 \+4K becomes shared \(vmm, step \d+\)/.test((await memory.locator('.cause').textContent()) ?? ''),
      'the moment at which it became shared',
    );
    await until(async () => (await attribute.textContent()) === 'shared', 'it was shared from then on');
    await page.waitForTimeout(400);
    await pictures(page, 'attributes-then');
    await page.keyboard.press('Escape');
    await until(async () => (await memory.locator('.as-of').textContent()) === '', 'now again');
    await memory.getByLabel('Go to a slot').selectOption({ index: 2 });
    await page.waitForTimeout(800);
    await screenshot(page, 'attributes-slot');
    await memory.locator('.map-canvas').focus();
    await page.keyboard.press('Home');
    await page.waitForTimeout(800);
    await screenshot(page, 'attributes-all');
    await vscode.debug.stopDebugging();
    await memory.getByText('The session has ended').waitFor();

    // An ordinary VM says why there is nothing.
    await launch('first-fault.mmu');
    await stops.number(stops.sentences.length + 1);
    await memory
      .getByText('this is an ordinary VM', { exact: false })
      .or(memory.getByText('This is an ordinary VM'))
      .waitFor();
    await screenshot(page, 'attributes-ordinary');
  });

  it('say what they will show before there is a session', async function () {
    const page = await needPage(this);
    await vscode.commands.executeCommand('kvm-mmu.showPageTables');
    const tables = await webviewFrame(page, { viewType: 'kvm-mmu.page-tables' });
    await tables.getByText('No session').waitFor();
    await vscode.commands.executeCommand('kvm-mmu.showWalk');
    const walk = await webviewFrame(page, { viewType: 'kvm-mmu.walk' });
    await walk.getByText('No session').waitFor();
  });

  it('show what is mapped, and find an address', async function () {
    const page = await needPage(this);
    await launch('first-fault.mmu');
    await stops.number(1);
    await webviewFrame(page, { viewType: 'kvm-mmu.walk' });
    await makeRoom();
    await vscode.commands.executeCommand('kvm-mmu.showPageTables');
    const tables = await webviewFrame(page, { viewType: 'kvm-mmu.page-tables' });
    await shows(tables, await stops.number(1));
    // It opens where the fault is: at the root of EPT, which is empty.
    await tables.locator('.tree-row.here').waitFor();
    assert.equal(await tables.locator('.tree-row.here').getAttribute('data-path'), '0');
    await pictures(page, 'tables-first');

    await next();
    await shows(tables, await stops.number(2));
    // The entry that was missing is there; the fault is at another one.
    await tables.locator('.tree-row.changed[data-path="0"]').waitFor();
    await until(async () => (await tables.locator('.tree-row.here[data-path="0"]').count()) === 0, 'the accent moves');
    for (let fault = 3; fault <= 5; fault++) {
      await next();
      await shows(tables, await stops.number(fault));
    }
    await until(async () => (await tables.locator('.tree-row.changed[data-path="0"]').count()) === 0, 'the mark goes');
    await tables.locator('.tree-row.table').first().waitFor();
    await tables.getByRole('button', { name: 'Fault' }).click();
    await tables.locator('.tree-row.here').waitFor();
    const path = (await tables.locator('.tree-row.here').getAttribute('data-path')) ?? '';
    assert.ok(path.split('/').length >= 2, `the fault is at ${path}`);
    await page.waitForTimeout(500);
    await pictures(page, 'tables-ept');

    const guest = await tables
      .locator('.root-picker option', { hasText: 'Guest tables of kernel' })
      .getAttribute('value');
    await tables.locator('.root-picker').selectOption(guest);
    await tables.locator('.tree-row[data-path="0/0/2/0"]').waitFor();
    await page.waitForTimeout(500);
    await pictures(page, 'tables-guest');

    // Chosen in the partition, selected in the tree: its second row is the entry of level 3.
    await tables.locator('.partition-canvas').click({ position: { x: 60, y: 75 } });
    await tables.locator('.tree-row.selected[data-path="0/0"]').waitFor();

    // Closed and opened by keyboard.
    const rows = tables.locator('.tree-row');
    await tables.locator('.tree').focus();
    await page.keyboard.press('Home');
    await page.keyboard.press('ArrowLeft');
    await until(async () => (await rows.count()) === 2, 'two rows when the root’s entry is closed');
    await page.keyboard.press('ArrowRight');
    await tables.locator('.tree-row[data-path="0/0/2/0"]').waitFor();

    await tables.locator('.search input').fill('0x40_1000');
    await page.keyboard.press('Enter');
    await until(
      async () => /^PTE 1/.test((await tables.locator('.details h2').textContent()) ?? ''),
      'the details of PTE 1',
    );
    await until(
      async () => /0x201000/.test((await tables.locator('.search-answer').textContent()) ?? ''),
      'the walk of 0x401000 in words',
    );
    // The eye has come to the page: sixteen pages, with this one amid them.
    const canvas = tables.locator('.partition-canvas');
    await until(
      async () => (await canvas.getAttribute('aria-description')) === '64K from 3f_9800',
      'the partition at 0x401000',
    );
    await tables.locator('.search input').fill('nonsense');
    await page.keyboard.press('Enter');
    await tables.getByText('is not an address').waitFor();

    await vscode.debug.stopDebugging();
    await tables.getByText('The session has ended').waitFor();
    await screenshot(page, 'tables-ended');
  });
});
