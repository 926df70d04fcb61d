import * as assert from 'node:assert/strict';
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as vscode from 'vscode';
import { x86Image } from '../../image-fixture.ts';
import { needPage, screenshot, webviewFrame } from './page.ts';
import {
  debugToEnd,
  describeViews,
  endSession,
  makeRoom,
  pictures,
  scenario,
  shows,
  stops,
  until,
  withoutLab,
} from './views.ts';

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

describeViews('the root cache', () => {
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
    await endSession();
    await cache.getByText('The session has ended').waitFor();
  });

  it('show that NPT’s root has another role than the processor, and stays', async function () {
    const page = await needPage(this);
    const program = rootsScenario('npt.mmu', 'second-stage tdp npt 4-level');
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
    await pictures(page, 'root-cache-npt');
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
});
