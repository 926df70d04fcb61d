// Boots real Linux guests under QEMU (TCG) and saves their memory and registers, so that a page-table lister can be
// compared with what QEMU itself says. Debian's kernels and busybox are downloaded and unpacked, never installed.
//
//   node test/guests/boot.mjs NAME… | all | --list   [--fresh] [--install] [--timeout SECONDS] [--then COMMAND]
//
// out/NAME/ then holds, all taken in one stop of the machine:
//   memory.raw          all RAM; "ram" in registers.json says which guest-physical address each part has
//   core.elf            dump-guest-memory without paging
//   info-tlb.txt        x86: `info tlb` of QEMU's monitor
//   info-registers.txt  `info registers` of QEMU's monitor
//   registers.json      {guest, arch, qemu, kernel, cpu, registers: {name: hex}, ram: [{gpa, size, fileOffset}]},
//                       every number a hex string; arm64 adds "currentEl"
//
// --then boots anew, and runs a command of the shell when all is saved, while QEMU still holds the stopped machine. The
// command finds in its environment: GUEST_NAME; GUEST_OUT, the folder with the files above; GUEST_QMP and GUEST_GDB, the
// sockets of QEMU's machine protocol and of its gdb stub, with nobody on them. QEMU is ended after it.
//
// Environment: GUESTS_CACHE (default test/guests/cache) holds what was downloaded; GUESTS_OUT (default test/guests/out)
// is where the folders NAME/ are made.

import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const here = path.dirname(fileURLToPath(import.meta.url));
const cache = path.resolve(process.env.GUESTS_CACHE || path.join(here, 'cache'));
const out = path.resolve(process.env.GUESTS_OUT || path.join(here, 'out'));

const compiler = 'aarch64-linux-gnu-gcc';
const RAM = 256 * 1024 * 1024;
const CR0_PG = 1n << 31n;
const CR4_PAE = 1n << 5n;
const CR4_LA57 = 1n << 12n;
const EFER_LMA = 1n << 10n;

const x86 = (cr4On, cr4Off, long) => (r) => {
  if (!(r.cr0 & CR0_PG)) return 'CR0.PG is 0: paging is off';
  if ((r.cr4 & cr4On) !== cr4On) return `CR4 is 0x${r.cr4.toString(16)}, without 0x${cr4On.toString(16)}`;
  if (r.cr4 & cr4Off) return `CR4 is 0x${r.cr4.toString(16)}, with a bit of 0x${cr4Off.toString(16)}`;
  if (Boolean(r.efer & EFER_LMA) !== long) return `EFER.LMA is ${long ? 0 : 1}`;
};

const pc = {
  ramBase: 0,
  console: 'ttyS0',
  machine: ['-M', 'pc'],
  qemuPackage: 'qemu-system-x86',
  family: 'x86',
  inProgram: /\bCPL=3\b/,
};
const arm64 = (r) => {
  for (const name of ['ttbr0_el1', 'ttbr1_el1', 'tcr_el1', 'sctlr_el1', 'mair_el1']) {
    if (r[name] === undefined) return `the gdb stub gave no ${name}`;
  }
  if (!(r.sctlr_el1 & 1n)) return 'SCTLR_EL1.M is 0: translation is off';
};

const virt = {
  deb: 'arm64',
  meta: 'linux-image-arm64',
  qemu: 'qemu-system-aarch64',
  ramBase: 0x40000000,
  console: 'ttyAMA0',
  machine: ['-M', 'virt,gic-version=3'],
  qemuPackage: 'qemu-system-arm',
  cpu: 'max,pauth-impdef=on',
  family: 'arm64',
  inProgram: /\bEL0t\b/,
};

const kvm = {
  machine: ['-M', 'virt,virtualization=on,gic-version=3'],
  inProgram: /PC=00000000400000.*EL1h/s,
  program: 'stage2',
  wrong: (r) => {
    if (!r.vttbr_el2 || !r.vtcr_el2) return 'the gdb stub gave no VTTBR_EL2 or VTCR_EL2';
    if (!(r.hcr_el2 & 1n)) return 'HCR_EL2.VM is 0: stage 2 is off';
  },
};

const guests = {
  'x86-4level': {
    ...pc,
    about: 'x86-64, 4-level tables',
    deb: 'amd64',
    meta: 'linux-image-amd64',
    qemu: 'qemu-system-x86_64',
    cpu: 'max,-la57,-arch-capabilities',
    wrong: x86(CR4_PAE, CR4_LA57, true),
  },
  'x86-5level': {
    ...pc,
    about: 'x86-64, 5-level tables',
    deb: 'amd64',
    meta: 'linux-image-amd64',
    qemu: 'qemu-system-x86_64',
    cpu: 'max,+la57,-arch-capabilities',
    wrong: x86(CR4_PAE | CR4_LA57, 0n, true),
  },
  'x86-pae': {
    ...pc,
    about: 'i386, PAE tables',
    deb: 'i386',
    meta: 'linux-image-686-pae',
    qemu: 'qemu-system-i386',
    cpu: 'max,-arch-capabilities',
    wrong: x86(CR4_PAE, CR4_LA57, false),
  },
  'x86-32bit': {
    ...pc,
    about: 'i386, two-level tables of 4-byte entries',
    deb: 'i386',
    meta: 'linux-image-686',
    qemu: 'qemu-system-i386',
    cpu: 'max,-arch-capabilities',
    wrong: x86(0n, CR4_PAE | CR4_LA57, false),
  },
  arm64: { ...virt, about: 'arm64 at EL1, tables of the kernel and of a process', wrong: arm64 },
  // Stopped while the VM in the guest spins at its own address: EL1 registers are the VM's, EL2 registers the host's.
  'arm64-kvm': {
    ...virt,
    ...kvm,
    about: 'arm64 at EL2 (VHE) with a KVM guest: stage-2 tables',
  },
  'arm64-kvm-nvhe': {
    ...virt,
    ...kvm,
    about: "arm64 at EL1 with KVM's own tables at EL2 and a KVM guest: stage-2 tables",
    append: 'kvm-arm.mode=nvhe',
  },
};

const init = (work) => `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /tmp /bin
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
# The kernel turns these off by itself where there is little memory.
echo always 2>/dev/null >/sys/kernel/mm/transparent_hugepage/enabled
# Pages of the page cache, and private memory of several processes.
dd if=/dev/urandom of=/tmp/blob bs=64k count=64 2>/dev/null
( text=$(head -c 3000000 /dev/zero | tr '\\000' a); while :; do sleep 1000; done ) &
tail -f /tmp/blob >/dev/null &
grep -c . /tmp/blob >/dev/null
${work}
while :; do sleep 1000; done
`;

// This process never sleeps, so it is its tables that the processor uses when the machine is stopped; its buffer is
// large enough for huge pages.
const spin = `dd if=/dev/zero of=/dev/null bs=11M conv=swab &
sleep 1
echo GUEST-READY`;

// ---------------------------------------------------------------------------------------------------------------- apt

function aptOptions(deb) {
  const lists = path.join(cache, 'apt', deb, 'lists');
  const archives = path.join(cache, 'apt', deb, 'cache');
  fs.mkdirSync(path.join(lists, 'partial'), { recursive: true });
  fs.mkdirSync(path.join(archives, 'archives', 'partial'), { recursive: true });
  const settings = {
    'APT::Architecture': deb,
    'APT::Architectures': deb,
    'APT::Sandbox::User': 'root',
    'Dir::State::Lists': lists,
    'Dir::State::status': '/dev/null',
    'Dir::Cache': archives,
  };
  return Object.entries(settings).flatMap(([key, value]) => ['-o', `${key}=${value}`]);
}

/** The name of the package that a metapackage stands for now; the lists are fetched when they are missing. */
function realName(deb, meta) {
  const ask = () => {
    const answer = spawnSync('apt-cache', [...aptOptions(deb), 'depends', meta], { encoding: 'utf8' });
    return /Depends: (linux-image-\S+)/.exec(answer.stdout ?? '')?.[1];
  };
  const known = ask();
  if (known) return known;
  updateLists(deb);
  return ask();
}

function updateLists(deb) {
  // One list that cannot be had (a mirror in the middle of its sync) does not matter while the others serve.
  spawnSync('apt-get', [...aptOptions(deb), 'update'], { stdio: 'ignore' });
}

/** Downloads a package and unpacks the files that match, once; answers the folder. */
function unpacked(deb, name, patterns) {
  const folder = path.join(cache, `${name}_${deb}`);
  const done = path.join(folder, '.done');
  if (fs.existsSync(done)) return folder;
  const fetched = path.join(cache, 'deb', `${name}_${deb}`);
  fs.rmSync(fetched, { recursive: true, force: true });
  fs.mkdirSync(fetched, { recursive: true });
  const download = () =>
    spawnSync('apt-get', [...aptOptions(deb), 'download', name], { cwd: fetched, encoding: 'utf8' });
  let result = download();
  if (result.status !== 0) {
    updateLists(deb);
    result = download();
  }
  const file = fs.readdirSync(fetched).find((entry) => entry.endsWith('.deb'));
  if (result.status !== 0 || !file) throw new Error(`apt-get download ${name} (${deb}) failed:\n${result.stderr}`);
  fs.rmSync(folder, { recursive: true, force: true });
  fs.mkdirSync(folder, { recursive: true });
  // A kernel's package is some hundred megabytes of modules, so only what is needed is taken out of it.
  const command = 'dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --wildcards "$3"';
  for (const pattern of patterns) {
    execFileSync('sh', ['-c', command, 'sh', path.join(fetched, file), folder, pattern], { stdio: 'pipe' });
  }
  const version = execFileSync('dpkg-deb', ['-f', path.join(fetched, file), 'Version'], { encoding: 'utf8' }).trim();
  fs.writeFileSync(done, `${version}\n`);
  fs.rmSync(fetched, { recursive: true, force: true });
  return folder;
}

/** The kernel that a metapackage stands for: [package, folder]. Lists of an earlier day may name one that is gone. */
function kernelOf({ deb, meta }) {
  const patterns = ['./boot/vmlinuz-*'];
  const known = realName(deb, meta);
  if (!known) throw new Error(`apt knows no package ${meta} for ${deb}`);
  try {
    return [known, unpacked(deb, known, patterns)];
  } catch (error) {
    const other = realName(deb, meta);
    if (other === known) throw error;
    return [other, unpacked(deb, other, patterns)];
  }
}

const versionOf = (folder) => fs.readFileSync(path.join(folder, '.done'), 'utf8').trim();

/** Whether there is a program of this name, or a file of this path. */
function isThere(name) {
  if (name.startsWith('/')) return fs.existsSync(name);
  return process.env.PATH.split(':').some((folder) => fs.existsSync(path.join(folder, name)));
}

function needPackages(wanted, install) {
  const missing = wanted.filter(([program]) => !isThere(program));
  const packages = [...new Set(missing.flatMap(([, ...names]) => names))];
  if (!packages.length) return;
  const command = ['apt-get', 'install', '-y', '--no-install-recommends', ...packages];
  if (!install) {
    const programs = missing.map(([program]) => program).join(', ');
    throw new Error(`${programs}: not found. Install: ${command.join(' ')} (or give --install)`);
  }
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  const run = () => spawnSync(command[0], command.slice(1), { stdio: 'inherit', env }).status === 0;
  if (run()) return;
  spawnSync('apt-get', ['update'], { stdio: 'inherit', env });
  if (!run()) throw new Error(`${command.join(' ')} failed`);
}

// ---------------------------------------------------------------------------------------------------------- initramfs

/** A cpio archive in the "newc" form. Entries: {name, mode, data?, device?: [major, minor]}. */
function cpio(entries) {
  const parts = [];
  const pad = (length) => parts.push(Buffer.alloc(-length & 3));
  const all = [...entries, { name: 'TRAILER!!!', mode: 0 }];
  all.forEach(({ name, mode, data = Buffer.alloc(0), device = [0, 0] }, i) => {
    const inode = i + 1;
    const links = 1;
    const nameLength = Buffer.byteLength(name) + 1;
    const fields = [inode, mode, 0, 0, links, 0, data.length, 0, 0, ...device, nameLength, 0];
    const header = `070701${fields.map((n) => n.toString(16).padStart(8, '0')).join('')}${name}\0`;
    parts.push(Buffer.from(header));
    pad(header.length);
    parts.push(Buffer.from(data));
    pad(data.length);
  });
  return Buffer.concat(parts);
}

function initramfs(busybox, script, extra = []) {
  const folder = (name) => ({ name, mode: 0o40755 });
  const program = (name, data) => ({ name, mode: 0o100755, data });
  return cpio([
    ...['bin', 'dev', 'proc', 'sys', 'tmp'].map(folder),
    { name: 'dev/console', mode: 0o20600, device: [5, 1] },
    { name: 'dev/null', mode: 0o20666, device: [1, 3] },
    { name: 'dev/zero', mode: 0o20666, device: [1, 5] },
    { name: 'dev/urandom', mode: 0o20666, device: [1, 9] },
    { name: 'dev/kvm', mode: 0o20666, device: [10, 232] },
    program('bin/busybox', fs.readFileSync(busybox)),
    program('init', Buffer.from(script)),
    ...extra.map(([name, data]) => program(name, data)),
  ]);
}

/** A program of this folder without a C library, compiled for arm64. */
function compiled(name, folder) {
  const program = path.join(folder, name);
  const flags = ['-O2', '-Wall', '-static', '-nostdlib', '-ffreestanding', '-fno-pie', '-fno-stack-protector'];
  execFileSync(compiler, [...flags, path.join(here, `${name}.c`), '-o', program], { stdio: 'pipe' });
  return fs.readFileSync(program);
}

// ---------------------------------------------------------------------------------------------------- QEMU's sockets

async function connect(file) {
  for (let tries = 0; ; tries++) {
    const socket = net.createConnection(file);
    try {
      await once(socket, 'connect');
      return socket;
    } catch (error) {
      if (tries > 100) throw error;
      await sleep(50);
    }
  }
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** QEMU's machine protocol: one JSON object a line. */
class Qmp {
  #text = '';
  #waiting = [];

  static async open(file) {
    const qmp = new Qmp();
    qmp.socket = await connect(file);
    qmp.socket.setEncoding('utf8');
    qmp.socket.on('data', (chunk) => qmp.#receive(chunk));
    qmp.socket.on('close', () => qmp.#fail());
    qmp.socket.on('error', () => qmp.#fail());
    await qmp.run('qmp_capabilities');
    return qmp;
  }

  #receive(chunk) {
    this.#text += chunk;
    const lines = this.#text.split('\n');
    this.#text = lines.pop();
    for (const line of lines.filter((l) => l.trim())) {
      const message = JSON.parse(line);
      if ('return' in message) this.#waiting.shift()?.resolve(message.return);
      else if ('error' in message) this.#waiting.shift()?.reject(new Error(`QEMU: ${message.error.desc}`));
    }
  }

  #fail() {
    for (const { reject } of this.#waiting.splice(0)) reject(new Error('QEMU closed its monitor'));
  }

  run(execute, args) {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ resolve, reject });
      this.socket.write(`${JSON.stringify({ execute, arguments: args })}\n`);
    });
  }

  async monitor(line) {
    return (await this.run('human-monitor-command', { 'command-line': line })).replaceAll('\r\n', '\n');
  }
}

/** As much of gdb's remote protocol as reading registers takes. Leaves without a word: at one, QEMU would run on. */
class Gdb {
  #bytes = Buffer.alloc(0);
  #waiting;

  static async open(file) {
    const gdb = new Gdb();
    gdb.socket = await connect(file);
    gdb.socket.on('data', (chunk) => gdb.#receive(chunk));
    gdb.socket.on('close', () => gdb.#waiting?.reject(new Error('QEMU closed its gdb socket')));
    gdb.socket.on('error', () => {});
    await gdb.ask('qSupported:xmlRegisters=aarch64');
    return gdb;
  }

  /** Answers have the form $text#checksum; "+" between them says that ours arrived. */
  #receive(chunk) {
    this.#bytes = Buffer.concat([this.#bytes, chunk]);
    const from = this.#bytes.indexOf('$');
    const to = this.#bytes.indexOf('#', from);
    if (from < 0 || to < 0 || this.#bytes.length < to + 3) return;
    const payload = this.#bytes.subarray(from + 1, to);
    this.#bytes = this.#bytes.subarray(to + 3);
    this.socket.write('+');
    const plain = [];
    for (let i = 0; i < payload.length; i++) {
      const escaped = payload[i] === 0x7d;
      plain.push(escaped ? payload[++i] ^ 0x20 : payload[i]);
    }
    this.#waiting?.resolve(Buffer.from(plain).toString('latin1'));
  }

  ask(text) {
    const sum = Buffer.from(text, 'latin1').reduce((total, byte) => (total + byte) & 0xff, 0);
    return new Promise((resolve, reject) => {
      this.#waiting = { resolve, reject };
      this.socket.write(`$${text}#${sum.toString(16).padStart(2, '0')}`);
    });
  }

  async feature(name) {
    let xml = '';
    for (;;) {
      const answer = await this.ask(`qXfer:features:read:${name}:${xml.length.toString(16)},ffb`);
      if (!/^[ml]/.test(answer)) throw new Error(`QEMU's gdb stub does not give ${name}: "${answer}"`);
      xml += answer.slice(1);
      if (answer[0] === 'l') return xml;
    }
  }

  /** Every register that the target description names, in the order of their numbers: [{name, number, bits}]. */
  async list() {
    const found = [];
    let next = 0;
    for (const [, file] of (await this.feature('target.xml')).matchAll(/<xi:include\s+href="([^"]+)"/g)) {
      for (const [, text] of (await this.feature(file)).matchAll(/<reg\s([^>]*)>/g)) {
        const of = (key) => new RegExp(`\\b${key}="([^"]*)"`).exec(text)?.[1];
        const number = Number(of('regnum') ?? next);
        next = number + 1;
        found.push({ name: of('name'), number, bits: Number(of('bitsize')) });
      }
    }
    return found;
  }

  /** The value of a register; undefined when QEMU does not give it. */
  async value(number) {
    const answer = await this.ask(`p${number.toString(16)}`);
    if (!/^([0-9a-f]{2})+$/.test(answer)) return undefined;
    return BigInt(`0x${Buffer.from(answer, 'hex').reverse().toString('hex')}`);
  }
}

// -------------------------------------------------------------------------------------------------------- one machine

const running = new Set();
const folders = new Set();

function cleanUp() {
  for (const child of running) child.kill('SIGKILL');
  for (const folder of folders) fs.rmSync(folder, { recursive: true, force: true });
}

process.on('exit', cleanUp);
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(1));

const hex = (value, digits = 1) => `0x${value.toString(16).padStart(digits, '0')}`;

function x86Registers(text) {
  const registers = {};
  for (const name of ['CR0', 'CR2', 'CR3', 'CR4', 'EFER']) {
    const found = new RegExp(`\\b${name}=([0-9a-f]+)`).exec(text);
    if (!found) throw new Error(`"info registers" names no ${name}`);
    registers[name.toLowerCase()] = BigInt(`0x${found[1]}`);
  }
  return registers;
}

/** Registers of the processor that have to do with translation; general and vector registers are left out. */
async function arm64Registers(file) {
  const gdb = await Gdb.open(file);
  const registers = {};
  // QEMU calls registers that AArch32 shares by their short names.
  const shared = { sctlr: 'sctlr_el1', vbar: 'vbar_el1' };
  const wanted = /^(cpsr|(ttbr[01]|tcr2?|sctlr|mair|hcr|vttbr|vtcr|contextidr|vbar|esr|far)_el[123]|id_aa64\w+_el1)$/;
  for (const { name, number } of await gdb.list()) {
    const key = shared[name.toLowerCase()] ?? name.toLowerCase();
    if (!wanted.test(key)) continue;
    const value = await gdb.value(number);
    if (value !== undefined) registers[key] = value;
  }
  gdb.socket.destroy();
  return registers;
}

async function boot(name, options) {
  const guest = guests[name];
  const target = path.join(out, name);
  if (fs.existsSync(path.join(target, 'registers.json')) && !options.fresh && !options.command) {
    console.log(`${name}: ${path.relative(process.cwd(), target)} is there already (--fresh makes it anew)`);
    return;
  }
  const started = Date.now();
  const wanted = [
    [guest.qemu, guest.qemuPackage],
    ['setpriv', 'util-linux'],
    ['dpkg-deb', 'dpkg'],
  ];
  if (guest.program) {
    wanted.push([compiler, 'gcc-aarch64-linux-gnu']);
    wanted.push(['/usr/aarch64-linux-gnu/include/linux/kvm.h', 'linux-libc-dev-arm64-cross']);
  }
  needPackages(wanted, options.install);

  const [kernelPackage, kernelFolder] = kernelOf(guest);
  const busyboxFolder = unpacked(guest.deb, 'busybox-static', ['./bin/busybox']);
  const kernel = fs.readdirSync(path.join(kernelFolder, 'boot')).find((entry) => entry.startsWith('vmlinuz-'));

  const part = `${target}.part`;
  fs.rmSync(part, { recursive: true, force: true });
  fs.mkdirSync(part, { recursive: true });
  const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'guest-'));
  folders.add(scratch);
  const monitorSocket = path.join(scratch, 'qmp');
  const gdbSocket = path.join(scratch, 'gdb');
  const initrd = path.join(scratch, 'initrd');
  const extra = guest.program ? [[`bin/${guest.program}`, compiled(guest.program, scratch)]] : [];
  const work = guest.program ? `/bin/${guest.program} &` : spin;
  fs.writeFileSync(initrd, initramfs(path.join(busyboxFolder, 'bin/busybox'), init(work), extra));

  const line = [`console=${guest.console}`, 'panic=-1', 'loglevel=5', guest.append].filter(Boolean).join(' ');
  const args = [
    ...guest.machine,
    ...['-accel', 'tcg', '-cpu', guest.cpu, '-smp', '1', '-m', `${RAM >> 20}M`],
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-vga', 'none', '-net', 'none', '-no-reboot'],
    ...['-serial', 'stdio', '-qmp', `unix:${monitorSocket},server=on,wait=off`],
    ...['-gdb', `unix:${gdbSocket},server=on,wait=off`],
    ...['-kernel', path.join(kernelFolder, 'boot', kernel), '-initrd', initrd, '-append', line],
  ];
  // setpriv lets the kernel end QEMU when this process is killed in a way that it cannot see.
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', guest.qemu, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  running.add(child);
  let ended = 0;
  try {
    await saveWhenReady(name, guest, child, { part, monitorSocket, gdbSocket }, options);
    const facts = path.join(part, 'registers.json');
    const saved = JSON.parse(fs.readFileSync(facts, 'utf8'));
    saved.kernel = `${kernelPackage} ${versionOf(kernelFolder)}`;
    fs.writeFileSync(facts, `${JSON.stringify(saved, null, 2)}\n`);
    console.log(`${name}: saved in ${((Date.now() - started) / 1000).toFixed(1)} s, ${saved.kernel}`);
    if (options.command) {
      const places = { GUEST_NAME: name, GUEST_OUT: part, GUEST_QMP: monitorSocket, GUEST_GDB: gdbSocket };
      ended = await shell(options.command, places);
    }
  } finally {
    running.delete(child);
    if (child.exitCode === null && child.signalCode === null) {
      child.kill('SIGKILL');
      await once(child, 'exit');
    }
    if (!fs.existsSync(path.join(part, 'registers.json'))) fs.rmSync(part, { recursive: true, force: true });
    fs.rmSync(scratch, { recursive: true, force: true });
    folders.delete(scratch);
  }
  fs.rmSync(target, { recursive: true, force: true });
  fs.renameSync(part, target);
  if (ended !== 0) throw new Error(`saved, but the command after it ended with ${ended}`);
}

/** Runs a command to its end; answers its status, or the signal that ended it. */
async function shell(command, env) {
  const child = spawn('sh', ['-c', command], { stdio: 'inherit', env: { ...process.env, ...env } });
  running.add(child);
  try {
    const [code, signal] = await once(child, 'exit');
    return signal ?? code;
  } finally {
    running.delete(child);
  }
}

/** Stops the machine while it runs a program, so that the tables of a process are in use; answers the registers. */
async function stopInProgram(qmp, guest) {
  for (let tries = 0; tries < 100; tries++) {
    await sleep(tries ? 30 : 700);
    await qmp.run('stop');
    const text = await qmp.monitor('info registers');
    if (guest.inProgram.test(text)) return text;
    await qmp.run('cont');
  }
  throw new Error('the machine was never stopped in a program');
}

async function saveWhenReady(name, guest, child, { part, monitorSocket, gdbSocket }, options) {
  let text = '';
  const tail = () => text.split('\n').slice(-30).join('\n');
  const ready = new Promise((resolve, reject) => {
    const timer = setTimeout(
      () => reject(new Error(`no READY after ${options.timeout} s; the end of the console:\n${tail()}`)),
      options.timeout * 1000,
    );
    const listen = (stream) =>
      stream.setEncoding('utf8').on('data', (chunk) => {
        text += chunk;
        if (/GUEST-READY\r?\n/.test(text)) {
          clearTimeout(timer);
          resolve();
        }
        if (/GUEST-FAILED\r?\n/.test(text)) {
          clearTimeout(timer);
          reject(new Error(`the program in the guest failed; the end of the console:\n${tail()}`));
        }
      });
    listen(child.stdout);
    listen(child.stderr);
    child.on('error', reject);
    child.on('exit', (code, signal) => {
      clearTimeout(timer);
      reject(new Error(`${guest.qemu} ended (${signal ?? code}); the end of the console:\n${tail()}`));
    });
  });
  ready.catch(() => {});
  await ready;
  fs.writeFileSync(path.join(part, 'console.txt'), text.replaceAll('\r\n', '\n'));

  const qmp = await Qmp.open(monitorSocket);
  const registersText = await stopInProgram(qmp, guest);
  const registers = guest.family === 'x86' ? x86Registers(registersText) : await arm64Registers(gdbSocket);
  const wrong = guest.wrong(registers);
  if (wrong) throw new Error(`not the guest that was asked for: ${wrong}`);
  if (guest.family === 'x86') fs.writeFileSync(path.join(part, 'info-tlb.txt'), await qmp.monitor('info tlb'));
  await qmp.run('pmemsave', { val: guest.ramBase, size: RAM, filename: path.join(part, 'memory.raw') });
  await qmp.run('dump-guest-memory', { paging: false, protocol: `file:${path.join(part, 'core.elf')}` });
  fs.chmodSync(path.join(part, 'core.elf'), 0o644);
  const version = (await qmp.run('query-version')).qemu;
  if ((await qmp.monitor('info registers')) !== registersText) throw new Error('the machine ran while it was saved');
  fs.writeFileSync(path.join(part, 'info-registers.txt'), registersText);
  const json = {
    guest: name,
    arch: guest.deb,
    qemu: `${version.major}.${version.minor}.${version.micro}`,
    kernel: '',
    cpu: guest.cpu,
    ...('cpsr' in registers && { currentEl: hex((registers.cpsr >> 2n) & 3n) }),
    registers: Object.fromEntries(Object.entries(registers).map(([key, value]) => [key, hex(value)])),
    ram: [{ gpa: hex(guest.ramBase), size: hex(RAM), fileOffset: hex(0) }],
  };
  fs.writeFileSync(path.join(part, 'registers.json'), `${JSON.stringify(json, null, 2)}\n`);
  qmp.socket.destroy();
}

// ---------------------------------------------------------------------------------------------------------- arguments

const usage = 'usage: node boot.mjs NAME… | all | --list   [--fresh] [--install] [--timeout SECONDS] [--then COMMAND]';

async function main(args) {
  const options = { fresh: false, install: false, timeout: 180 };
  const names = [];
  while (args.length) {
    const arg = args.shift();
    if (arg === '--list') {
      for (const [name, { about }] of Object.entries(guests)) console.log(`${name.padEnd(16)} ${about}`);
      return;
    }
    if (arg === '--fresh' || arg === '--install') options[arg.slice(2)] = true;
    else if (arg === '--timeout' && Number(args[0]) > 0) options.timeout = Number(args.shift());
    else if (arg === '--then' && args[0]) options.command = args.shift();
    else if (arg === 'all') names.push(...Object.keys(guests));
    else if (Object.hasOwn(guests, arg)) names.push(arg);
    else throw new Error(`${arg}: ${arg.startsWith('-') ? 'no such option' : 'no such guest (see --list)'}\n${usage}`);
  }
  if (!names.length) throw new Error(usage);
  for (const name of new Set(names)) {
    try {
      await boot(name, options);
    } catch (error) {
      console.error(`${name}: ${error.message}`);
      process.exitCode = 1;
    }
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error.message);
  process.exitCode = 2;
});
