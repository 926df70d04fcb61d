// npm run private-kvm [RELEASE]: builds kvm.ko and kvm-amd.ko of a Debian kernel with software-protected VMs, which Debian leaves out
// (CONFIG_KVM_SW_PROTECTED_VM): "kvm-mmu lab --modules FILE" takes them, and so do the tests of private memory.
import { spawnSync } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';

const HEADERS = /^linux-headers-((6\.\d+)\.\d+\+\S+-amd64)$/;
const MODULES = ['kvm.ko', 'kvm-amd.ko'];

const folderOf = (release) =>
  join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'kvm-mmu', 'private-kvm', release);

function run(program, args, cwd) {
  const { status, error, stdout, stderr } = spawnSync(program, args, { cwd, encoding: 'utf8', maxBuffer: 1 << 26 });
  if (error) throw error;
  if (status !== 0) throw new Error(`${program} ${args.join(' ')} failed (${status})\n${stdout}${stderr}`.trimEnd());
}

/** Builds outside of the kernel's tree: of that there are its headers alone, and of its sources KVM's. */
function build(release) {
  const headers = `/usr/src/linux-headers-${release}`;
  const series = HEADERS.exec(`linux-headers-${release}`)?.[2];
  const source = `/usr/src/linux-source-${series}.tar.xz`;
  const lacks = [headers, source].filter((path) => !existsSync(path));
  if (lacks.length > 0)
    throw new Error(
      `${lacks.join(' and ')} missing: apt-get install linux-headers-${release} linux-source-${series} flex bison libelf-dev dwarves`,
    );
  const folder = mkdtempSync(join(tmpdir(), 'private-kvm-'));
  try {
    const top = `linux-source-${series}`;
    run('tar', ['-xJf', source, `${top}/arch/x86/kvm`, `${top}/virt/kvm`, `${top}/Makefile`], folder);
    const sublevel = /^SUBLEVEL = (\d+)$/m.exec(readFileSync(join(folder, top, 'Makefile'), 'utf8'))?.[1];
    if (!release.startsWith(`${series}.${sublevel}+`))
      throw new Error(
        `${source} is of ${series}.${sublevel}, the headers are of ${release}: both must be of one version`,
      );
    const kvm = join(folder, top, 'arch/x86/kvm');
    // trace.h is included by a path that leads two folders up from one that is searched.
    mkdirSync(join(folder, top, 'include/trace'), { recursive: true });
    const makefile = join(kvm, 'Makefile');
    const text = readFileSync(makefile, 'utf8')
      .replace(
        '-I $(srctree)/arch/x86/kvm',
        '-I $(src) -I $(src)/../../../include/trace -DCONFIG_KVM_SW_PROTECTED_VM=1',
      )
      .replace('$(srctree)/virt/kvm', '$(src)/../../../virt/kvm')
      .replace(/^obj-\$\(CONFIG_KVM_INTEL\).*\n/m, '');
    writeFileSync(makefile, text);
    run('make', ['-j2', '-C', headers, `M=${kvm}`, 'modules'], folder);
    mkdirSync(folderOf(release), { recursive: true });
    for (const name of MODULES) copyFileSync(join(kvm, name), join(folderOf(release), name));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const there = existsSync('/usr/src') ? readdirSync('/usr/src').filter((name) => HEADERS.test(name)) : [];
const release = process.argv[2] ?? HEADERS.exec(there.sort().at(-1) ?? '')?.[1];
try {
  if (release === undefined)
    throw new Error('no kernel 6.x has its headers in /usr/src: apt-get install linux-headers-…');
  console.log(`building KVM of ${release} with software-protected VMs: some minutes`);
  build(release);
  console.log(MODULES.map((name) => join(folderOf(release), name)).join('\n'));
} catch (error) {
  console.error(error.message);
  process.exit(1);
}
