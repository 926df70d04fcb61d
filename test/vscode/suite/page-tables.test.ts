import * as assert from 'node:assert/strict';
import * as vscode from 'vscode';
import { needPage, screenshot, webviewFrame } from './page.ts';
import { describeViews, endSession, launch, makeRoom, next, pictures, shows, stops, until } from './views.ts';

describeViews('the page tables', () => {
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

    await endSession();
    await tables.getByText('The session has ended').waitFor();
    await screenshot(page, 'tables-ended');
  });
});
