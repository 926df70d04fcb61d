import * as assert from 'node:assert/strict';
import * as vscode from 'vscode';
import { needPage, webviewFrame } from './page.ts';
import { describeViews, endSession, launch, makeRoom, pictures, stops, until } from './views.ts';

describeViews('the comparison', () => {
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
    await endSession();
    await launch('quadrant.mmu');
    await view.locator('select').selectOption('quadrant');
    await view.getByText(/other leaves/).waitFor();
    await pictures(page, 'comparison-leaves');
  });
});
