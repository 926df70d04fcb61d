import * as assert from 'node:assert/strict';
import { existsSync, mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as vscode from 'vscode';
import { x86Image } from '../../image-fixture.ts';
import { needPage, webviewFrame } from './page.ts';
import {
  describeViews,
  endSession,
  makeRoom,
  next,
  pictures,
  sentenceOf,
  shows,
  stops,
  until,
  withoutLab,
} from './views.ts';

describeViews('the views of images, guests, recordings and labs', () => {
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
    await endSession();
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
    await endSession();
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
    await endSession();
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
    await endSession();
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
    await endSession();
    await tables.getByText('The session has ended').waitFor();
  });
});
