import * as assert from 'node:assert/strict';
import type { Page } from 'playwright-core';
import * as vscode from 'vscode';
import { needPage, screenshot, webviewFrame } from './page.ts';
import {
  debugToEnd,
  describeViews,
  endSession,
  launch,
  makeRoom,
  next,
  pictures,
  shows,
  stops,
  until,
} from './views.ts';

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

describeViews('the map of memory', () => {
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

    await endSession();
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
    await endSession();
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
});
