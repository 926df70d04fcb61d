import * as assert from 'node:assert/strict';
import { needPage, webviewFrame } from './page.ts';
import { describeViews, launch, makeRoom, next, pictures, shows, stops, until } from './views.ts';

describeViews('the walk', () => {
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
});
