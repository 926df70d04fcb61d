// The workbench as a page: for what the `vscode` API cannot show, such as a webview's content or a hover.
import { join } from 'node:path';
import type { Browser, Frame, Page } from 'playwright-core';
import { chromium } from 'playwright-core';
import * as vscode from 'vscode';

// Each test file is bundled by itself; they share one connection through the global object.
const shared = globalThis as { kvmMmuTestBrowser?: Promise<Browser> };

/** The workbench's page, or undefined in a desktop VS Code, which offers no debugging endpoint. */
export async function workbenchPage(): Promise<Page | undefined> {
  const endpoint = process.env.KVM_MMU_TEST_CDP;
  if (!endpoint) return undefined;
  shared.kvmMmuTestBrowser ??= chromium.connectOverCDP(endpoint);
  const pages = (await shared.kvmMmuTestBrowser).contexts().flatMap((context) => context.pages());
  const page = pages.find((candidate) => candidate.url().includes('folder='));
  if (!page) throw new Error(`no page at ${endpoint} shows a workbench; there are: ${pages.map((each) => each.url())}`);
  return page;
}

/** The workbench's page; skips the test that asks for it where there is none. */
export async function needPage(test: Mocha.Context): Promise<Page> {
  const page = await workbenchPage();
  if (page) return page;
  test.test!.title += ' (no page to drive: this VS Code runs outside the test browser)';
  return test.skip();
}

/** Which webview: by the title it shows, or for one in an editor tab by its view type. */
export type WebviewName = { title: string } | { viewType: string };

/**
 * The frame that holds a webview's own document. Waits until the webview is visible and has loaded;
 * throws after `timeout` ms with the titles of the webviews that are there.
 */
export async function webviewFrame(page: Page, name: WebviewName, timeout = 40_000): Promise<Frame> {
  const deadline = Date.now() + timeout;
  for (;;) {
    const title = 'title' in name ? name.title : tabTitle(name.viewType);
    const seen: string[] = [];
    for (const outer of await page.locator('iframe.webview.ready').elementHandles()) {
      const inner = await (await outer.contentFrame())?.$('iframe#active-frame').catch(() => null);
      if (!inner) continue;
      const innerTitle = (await inner.getAttribute('title').catch(() => null)) ?? '';
      seen.push(innerTitle);
      // A hidden webview's frame stays in the page.
      if (innerTitle === title && (await outer.isVisible())) {
        const frame = await inner.contentFrame();
        if (frame) {
          await frame.waitForLoadState();
          return frame;
        }
      }
    }
    if (Date.now() > deadline) {
      throw new Error(`no webview ${JSON.stringify(name)} within ${timeout} ms; there are: ${JSON.stringify(seen)}`);
    }
    await page.waitForTimeout(100);
  }
}

/** The title of the tab that shows a webview panel of this type. */
function tabTitle(viewType: string): string | undefined {
  const tabs = vscode.window.tabGroups.all.flatMap((group) => group.tabs);
  // VS Code puts "mainThreadWebview-" before the type that the extension gave.
  return tabs.find((tab) => tab.input instanceof vscode.TabInputWebview && tab.input.viewType.endsWith(`-${viewType}`))
    ?.label;
}

/** The colour themes to look at: each kind that a webview may be shown in. */
export const colourThemes = ['Default Light Modern', 'Default Dark Modern', 'Default High Contrast'] as const;

/** Switches the colour theme and waits until it is active. */
export async function setColourTheme(theme: (typeof colourThemes)[number]): Promise<void> {
  const kinds = {
    'Default Light Modern': vscode.ColorThemeKind.Light,
    'Default Dark Modern': vscode.ColorThemeKind.Dark,
    'Default High Contrast': vscode.ColorThemeKind.HighContrast,
  };
  await vscode.workspace.getConfiguration('workbench').update('colorTheme', theme, vscode.ConfigurationTarget.Global);
  const deadline = Date.now() + 10_000;
  while (vscode.window.activeColorTheme.kind !== kinds[theme]) {
    if (Date.now() > deadline) throw new Error(`colour theme ${theme} did not become active within 10 s`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Saves what the page shows as `test/vscode/out/screenshots/NAME.png` and returns that path. */
export async function screenshot(page: Page, name: string): Promise<string> {
  const path = join(__dirname, 'screenshots', `${name}.png`);
  await page.screenshot({ path });
  return path;
}
