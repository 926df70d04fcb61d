import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, test } from 'node:test';
import { labArchitecture } from '../../adapter/lab/arch.ts';
import { Lab } from '../../adapter/lab/boot.ts';
import { findKernel } from '../../adapter/lab/kernel.ts';
import { type LabLaunch, parseLab } from '../../adapter/lab/launch.ts';
import { SILENT } from '../kvm/kvm.ts';
import { KERNELS, labTest } from './lab.ts';

// What a lab says when it cannot be had.

const folder = mkdtempSync(join(tmpdir(), 'kvm-mmu-'));
after(() => rmSync(folder, { recursive: true, force: true }));

test('the attribute says what is wrong with it', () => {
  for (const [given, words] of [
    ['bzImage', /"lab" must be an object such as .*, not "bzImage"/],
    [{}, /"kernel" must be the path of .*, not undefined/],
    [{ kernel: 'x', param: {} }, /"lab" has no "param"; there are "kernel", "modules" and "params"/],
    [{ kernel: 'x', modules: [1] }, /"modules" must be a path, or a list of paths, not \[1\]/],
    [{ kernel: 'x', params: ['npt=0'] }, /"params" must be an object such as \{"npt": 0\}/],
    [{ kernel: 'x', params: { npt: '0 init=/bin/sh' } }, /parameter "npt" must be a number, a boolean or a word/],
  ] as const) {
    const parsed = parseLab(given);
    assert.ok('error' in parsed);
    assert.match(parsed.error, words);
  }
});

async function refused(launch: Partial<LabLaunch>): Promise<string> {
  try {
    const lab = await Lab.boot({ kernel: KERNELS[0]!, modules: [], params: {}, ...launch }, SILENT);
    lab.close();
  } catch (error) {
    return (error as Error).message;
  }
  return 'it boots';
}

labTest('a kernel, a module or a parameter that does not fit is named before anything boots', async () => {
  const text = join(folder, 'readme.txt');
  writeFileSync(text, 'no kernel');
  const cut = join(folder, 'cut.deb');
  writeFileSync(cut, '!<arch>\ndebian-binary   1342943816  0     0     100644  4         `\n2.0\n');
  assert.match(await refused({ kernel: join(folder, 'nothing') }), /^"kernel" .*nothing: there is no such file$/);
  assert.match(
    await refused({ kernel: text }),
    /readme\.txt is no bzImage of x86-64: it lacks the boot protocol's header$/,
  );
  assert.match(await refused({ kernel: cut }), /^"kernel" .*cut\.deb cannot be unpacked: /);
  assert.match(await refused({ kernel: folder }), /has neither arch\/x86\/boot\/bzImage .* nor boot\/vmlinuz-…$/);
  assert.match(await refused({ params: { nptt: '0' } }), /^no module has a parameter "nptt"; .*kvm_amd has .*npt/);
  assert.match(
    await refused({ modules: [join(folder, 'none')] }),
    /^"modules" .*none: there is no such file or folder$/,
  );
  // A module of another kernel.
  const { image, modules } = findKernel({ kernel: KERNELS[0]!, modules: [], params: {} }, labArchitecture());
  const ours = modules.read('irqbypass')!;
  const foreign = join(folder, 'irqbypass.ko');
  const bytes = Buffer.from(ours.bytes);
  const at = bytes.indexOf('vermagic=');
  bytes.write('9', at + 'vermagic='.length);
  writeFileSync(foreign, bytes);
  assert.match(
    await refused({ modules: [foreign] }),
    /irqbypass\.ko does not fit: it is for the kernel 9\.\S+, and this one is /,
  );
  writeFileSync(foreign, 'no module');
  assert.match(await refused({ modules: [foreign] }), /irqbypass\.ko is no kernel module: it is no ELF file/);
  // Modules that are nowhere: this kernel has nothing of KVM built in.
  const alone = join(folder, 'boot', 'vmlinuz');
  mkdirSync(dirname(alone), { recursive: true });
  copyFileSync(image, alone);
  assert.ok(existsSync(alone));
  assert.match(await refused({ kernel: alone }), /has no \/dev\/kvm: .*kvm_amd is not among its modules/);
});

labTest('without virtio the line is a serial port, and it is said to be slow', async () => {
  const { image, modules } = findKernel({ kernel: KERNELS[0]!, modules: [], params: {} }, labArchitecture());
  const kernel = join(folder, 'serial', 'boot');
  const own = join(folder, 'serial', 'modules');
  mkdirSync(kernel, { recursive: true });
  mkdirSync(own);
  copyFileSync(image, join(kernel, 'vmlinuz'));
  for (const name of ['irqbypass', 'kvm', 'ccp', 'kvm_amd']) {
    const found = modules.read(name);
    if (found) writeFileSync(join(own, `${name}.ko`), found.bytes);
  }
  const problems: string[] = [];
  const lab = await Lab.boot(
    { kernel: join(kernel, 'vmlinuz'), modules: [own], params: {} },
    { ...SILENT, problem: (words) => problems.push(words) },
  );
  try {
    assert.deepEqual(problems, ['this kernel has no virtio_console: /dev/ttyS1 is used, which is slow']);
    const stream = await lab.start(['--help']);
    const said = await new Promise<string>((resolve) => {
      let text = '';
      stream.onData((chunk) => {
        text += new TextDecoder().decode(chunk);
      });
      stream.onClose(() => resolve(text));
    });
    assert.match(said, /^usage: kvm-mmu-helper/);
  } finally {
    lab.close();
  }
});

labTest('a kernel that panics says so, with the last of its console', async () => {
  const { image, modules } = findKernel({ kernel: KERNELS[0]!, modules: [], params: {} }, labArchitecture());
  // A kernel that is cut off: its decompressor gives up.
  const broken = join(folder, 'broken');
  const bytes = Buffer.from(readFileSync(image));
  bytes.fill(0, bytes.length - 200_000);
  writeFileSync(broken, bytes);
  const own = join(folder, 'of-broken');
  mkdirSync(own);
  for (const name of ['irqbypass', 'kvm', 'ccp', 'kvm_amd'])
    writeFileSync(join(own, `${name}.ko`), modules.read(name)!.bytes);
  const words = await Promise.race([
    refused({ kernel: broken, modules: [own] }),
    new Promise<string>((resolve) => setTimeout(() => resolve('it says nothing'), 60_000)),
  ]);
  assert.match(words, /^the lab('s kernel)? has (ended|not come up)/);
});

test('without QEMU a lab names the program and its package', () => {
  const { status, stderr } = spawnSync(
    process.execPath,
    ['dist/cli.cjs', 'lab', 'run', 'examples/on-kvm.mmu', '--kernel', 'linux-image-amd64'],
    { encoding: 'utf8', env: { ...process.env, PATH: '/nowhere' } },
  );
  assert.equal(status, 3, stderr);
  assert.match(
    stderr,
    /there is no qemu-system-x86_64 here: a lab needs it \(Debian: apt-get install qemu-system-x86\)/,
  );
});
