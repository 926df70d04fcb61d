// The adapter's Worker bundle in the Worker of a real browser.
import * as assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as vscode from 'vscode';
import { needPage } from './page.ts';

describe('the adapter in a browser’s Worker', () => {
  it('launches a scenario and stops at its first fault', async function () {
    const page = await needPage(this);
    const root = vscode.extensions.getExtension('kvm-mmu.kvm-mmu')!.extensionPath;
    const code = readFileSync(join(root, 'dist', 'worker.js'), 'utf8');
    const text = readFileSync(join(root, 'examples', 'first-fault.mmu'), 'utf8');
    const blank = await page.context().newPage();
    try {
      const sentence = await blank.evaluate(
        ([script, scenario]) =>
          new Promise<string>((resolve, reject) => {
            const worker = new Worker(URL.createObjectURL(new Blob([script!], { type: 'text/javascript' })));
            worker.onerror = (event) => reject(new Error(event.message));
            let seq = 1;
            const send = (command: string, args: object) =>
              worker.postMessage({ seq: seq++, type: 'request', command, arguments: args });
            worker.onmessage = ({ data }) => {
              if (data.type === 'response' && !data.success) reject(new Error(JSON.stringify(data)));
              if (data.type !== 'event') return;
              if (data.event === 'initialized') {
                send('setExceptionBreakpoints', { filters: ['second-stage'] });
                send('configurationDone', {});
              }
              if (data.event === 'stopped') resolve(data.body.text);
            };
            worker.postMessage({ type: 'file', path: '/first-fault.mmu', text: scenario });
            send('initialize', { adapterID: 'kvm-mmu', pathFormat: 'path' });
            send('launch', { program: '/first-fault.mmu' });
          }),
        [code, text],
      );
      assert.match(sentence, /^vCPU 0 .* is not present; handle_ept_violation is next\.$/);
    } finally {
      await blank.close();
    }
  });
});
