// VS Code, the extension and the page that shows them are there at all.
import * as assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import { basename } from 'node:path';
import * as vscode from 'vscode';
import { colourThemes, needPage, screenshot, setColourTheme, webviewFrame } from './page.ts';

describe('the extension', () => {
  it('is present and activates', async () => {
    const extension = vscode.extensions.getExtension('kvm-mmu.kvm-mmu');
    assert.ok(extension, 'VS Code does not know kvm-mmu.kvm-mmu');
    await extension.activate();
    assert.equal(extension.isActive, true);
  });
});

describe('the page helpers', () => {
  afterEach(async () => {
    await vscode.commands.executeCommand('workbench.action.closeAllEditors');
  });

  it('show a file of the examples in a screenshot', async function () {
    const page = await needPage(this);
    const [file] = (await vscode.workspace.findFiles('**/*')).sort((a, b) => a.path.localeCompare(b.path));
    if (!file) return this.skip();
    await vscode.window.showTextDocument(file);
    await page.locator(`.tab.active[data-resource-name="${basename(file.path)}"]`).waitFor();
    await page.locator('.view-lines .view-line').first().waitFor();
    const path = await screenshot(page, 'example');
    assert.ok(statSync(path).size > 10_000, `${path} is too small to show a workbench`);
  });

  it('find each of two webviews by title and by view type', async function () {
    const page = await needPage(this);
    for (const name of ['first', 'second']) {
      const column = name === 'first' ? vscode.ViewColumn.One : vscode.ViewColumn.Two;
      const panel = vscode.window.createWebviewPanel(`kvm-mmu.test-${name}`, `Title ${name}`, column);
      panel.webview.html = `<!doctype html><p>the ${name} webview</p>`;
    }
    for (const name of ['first', 'second']) {
      for (const by of [{ title: `Title ${name}` }, { viewType: `kvm-mmu.test-${name}` }]) {
        const frame = await webviewFrame(page, by);
        assert.equal(await frame.locator('p').textContent(), `the ${name} webview`);
      }
    }
  });

  it('switch the colour theme', async () => {
    for (const theme of [...colourThemes, 'Default Dark Modern'] as const) await setColourTheme(theme);
  });
});
