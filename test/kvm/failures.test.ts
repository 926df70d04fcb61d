import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmodSync, copyFileSync, existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import test, { after } from 'node:test';
import { Client, errorText, spawnAdapter } from '../adapter/client.ts';
import { guest, native, withoutKvm } from './kvm.ts';

// Hosts that lack something, made from this one by mount namespaces and another user.

const folder = mkdtempSync(join(tmpdir(), 'kvm-mmu-'));
after(() => rmSync(folder, { recursive: true, force: true }));

function skipReason(): string | false {
  const missing = withoutKvm();
  if (missing !== undefined) return missing;
  if (process.getuid?.() !== 0) return 'this needs root, to take things away';
  const works = spawnSync('unshare', ['-m', 'setpriv', '--reuid=65534', '--clear-groups', 'true']).status === 0;
  return works ? false : 'unshare and setpriv do not work here';
}
const skip = skipReason();

/** A script that stands for the helper on a host where `setup` has been done, run as root or as nobody. */
function helperOn(name: string, setup: readonly string[], user: 'root' | 'nobody'): string {
  const helper = join(folder, 'kvm-mmu-helper');
  if (!existsSync(helper)) {
    chmodSync(folder, 0o755);
    copyFileSync(native('kvm-mmu-helper'), helper);
    chmodSync(helper, 0o755);
  }
  const path = join(folder, name);
  const drop = user === 'nobody' ? 'setpriv --reuid=65534 --regid=65534 --clear-groups ' : '';
  const inside = [...setup, `exec ${drop}${helper} "$@"`].join('\n');
  writeFileSync(path, `#!/bin/sh\nexec unshare -m sh -c '${inside}' sh "$@"\n`, { mode: 0o755 });
  return path;
}

/** A guest that anybody may read. */
function image(): string {
  const path = join(folder, 'guest.elf');
  copyFileSync(guest('user.elf'), path);
  chmodSync(path, 0o644);
  return path;
}

/** A node for KVM that everybody may open, in place of this host's. */
const OPEN_KVM = [
  `mknod ${join(folder, 'kvm')} c 10 232 2>/dev/null`,
  `chmod 666 ${join(folder, 'kvm')}`,
  `mount --bind ${join(folder, 'kvm')} /dev/kvm`,
];

async function launch(helper: string): Promise<{ client: Client; error: string | undefined }> {
  const client = new Client(spawnAdapter());
  await client.initialize();
  const options = { type: 'kvm-mmu', request: 'launch', guest: image(), memory: '16M', helper, stopOnEntry: true };
  const response = await client.raw('launch', options);
  return { client, error: response.success ? undefined : errorText(response) };
}

for (const [name, setup, user, words] of [
  [
    'no /dev/kvm',
    ['mount -t tmpfs none /dev'],
    'root',
    /there is no \/dev\/kvm: load kvm_intel or kvm_amd, or turn virtualization on in the firmware/,
  ],
  [
    'no permission for /dev/kvm',
    [],
    'nobody',
    /no permission for \/dev\/kvm: join the group that owns it \(usually kvm\)/,
  ],
  ['something else at /dev/kvm', ['mount --bind /dev/null /dev/kvm'], 'root', /\/dev\/kvm speaks version -1/],
] as const)
  test(`a host with ${name} is told what to do`, { skip, timeout: 60_000 }, async () => {
    const { client, error } = await launch(helperOn(name.replaceAll(/\W/g, '-'), setup, user));
    try {
      assert.match(error ?? 'the launch succeeded', words);
    } finally {
      await client.close();
    }
  });

test('without privilege for userfaultfd everything else works, and that is said', {
  skip,
  timeout: 60_000,
}, async () => {
  const { client, error } = await launch(helperOn('no-uffd', OPEN_KVM, 'nobody'));
  try {
    assert.equal(error, undefined);
    await client.request('setExceptionBreakpoints', { filters: ['second-stage', 'guest'] });
    const first = client.stop();
    await client.request('configurationDone');
    await first;
    const stop = await client.move('continue');
    assert.match(stop.body.text, /the guest gets #PF/);
    const said = client.events
      .filter(({ event }) => event === 'output')
      .map(({ body }) => body.output)
      .join('');
    assert.match(
      said,
      /second-stage faults cannot be stopped at: userfaultfd is not permitted: run as root, give access to \/dev\/userfaultfd, or set the sysctl/,
    );
    const trap = await client.raw('evaluate', { expression: 'trap 0x200000 4K touch', context: 'repl' });
    assert.match(errorText(trap), /userfaultfd is not permitted/);
  } finally {
    await client.close();
  }
});

test('a machine whose memory cannot be opened here is read by packets, views and hovers too', {
  skip,
  timeout: 60_000,
}, async () => {
  // In a process namespace of its own the helper has another number, as on another machine.
  const helper = join(folder, 'far-away');
  writeFileSync(helper, `#!/bin/sh\nexec unshare --pid --fork ${resolve(native('kvm-mmu-helper'))} "$@"\n`, {
    mode: 0o755,
  });
  const { client, error } = await launch(helper);
  try {
    assert.equal(error, undefined);
    await client.request('setExceptionBreakpoints', { filters: ['guest'] });
    const query = { kind: 'walk', vcpu: 0, space: 'gva', address: '0x81fffffff8' };
    await client.request('mmu/watch', { type: 'watch', id: 'w', query });
    const first = client.stop();
    await client.request('configurationDone');
    await first;
    const changed = client.event('mmu/changed', ({ body }) => body.type === 'changed' && body.answers.length > 0);
    const stop = await client.move('continue');
    assert.match(
      stop.body.text,
      /^vCPU 0 wrote gva 0x81ffffff[0-9a-f]+ at CPL 3: PDPTE \d+ is not present|PTE \d+ is not present/,
    );
    const [{ answer }] = (await changed).body.answers;
    assert.equal(answer.kind, 'walk');
    assert.ok(answer.references.length > 0, JSON.stringify(answer));
    const { stackFrames } = await client.request('stackTrace', { threadId: 1 });
    assert.equal(stackFrames[0].name, 'page_fault');
    const { result } = await client.request('evaluate', { expression: 'gva:0x100000', context: 'hover' });
    assert.match(result, /→ gpa 0x10_0000.*\nPML4E 0 = /);
    const read = await client.request('readMemory', { memoryReference: 'gpa:0x100000', count: 16384 });
    assert.equal(Buffer.from(read.data, 'base64').length, 16384);
  } finally {
    await client.close();
  }
});

test('kvm-mmu says it too: run --target kvm and conform, exit status 3', { skip, timeout: 60_000 }, () => {
  const helper = helperOn('no-kvm', ['mount -t tmpfs none /dev'], 'root');
  const path = resolve('examples/on-kvm.mmu');
  const run = spawnSync(process.execPath, ['dist/cli.cjs', 'run', path, '--target', 'kvm', '--helper', helper], {
    encoding: 'utf8',
  });
  assert.equal(run.status, 3);
  assert.match(run.stderr, /cannot run on KVM: .*there is no \/dev\/kvm/s);
  const conform = spawnSync(process.execPath, ['dist/cli.cjs', 'conform', '--cases', '10', '--helper', helper], {
    encoding: 'utf8',
  });
  assert.equal(conform.status, 3);
  assert.match(conform.stderr, /there is no \/dev\/kvm/);
});
