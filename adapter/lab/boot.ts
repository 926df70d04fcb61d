import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { built } from '../kvm/built.ts';
import { type HelperImage, type HelperPlace, imageArguments } from '../kvm/place.ts';
import { dieWithUs } from '../rsp/node-stream.ts';
import type { ByteStream } from '../rsp/stream.ts';
import { type LabArchitecture, labArchitecture } from './arch.ts';
import { CHARACTER_DEVICE, FOLDER, type InitramfsEntry, initramfs, PROGRAM } from './initramfs.ts';
import { findKernel, type LabKernel } from './kernel.ts';
import type { LabLaunch } from './launch.ts';
import { LabLine, type LabStream } from './line.ts';
import { type ModulePlan, planModules } from './modules.ts';
import type { LabPrinter } from './printer.ts';

/** How long a kernel may take until its first process speaks. An emulated machine boots in 3 s, on a busy host in 30. */
const BOOT_MS = 120_000;
const MEMORY = '1G';
/** Where the helper is in the lab. */
const HELPER = '/helper';
/** Characters of the console that are kept for a message. */
const CONSOLE_KEPT = 8192;

/** A kernel of one's choice that runs in software emulation, with KVM in it. */
export class Lab implements HelperPlace {
  readonly release: string;
  readonly #qemu: ChildProcess;
  readonly #line: LabLine;
  readonly #folder: string;
  readonly #servers: readonly Server[];
  #files = 0;

  private constructor(release: string, qemu: ChildProcess, line: LabLine, folder: string, servers: readonly Server[]) {
    this.release = release;
    this.#qemu = qemu;
    this.#line = line;
    this.#folder = folder;
    this.#servers = servers;
  }

  /** Boots a kernel and waits until it takes orders. @throws Error in words for people */
  static async boot(launch: LabLaunch, printer: LabPrinter): Promise<Lab> {
    const arch = labArchitecture();
    if (spawnSync(arch.qemu, ['--version']).error)
      throw new Error(`there is no ${arch.qemu} here: a lab needs it (Debian: apt-get install ${arch.qemuPackage})`);
    const kernel = findKernel(launch, arch);
    const plan = planModules(kernel.modules, kernel.release, [...arch.line, arch.kvm], launch.params);
    printer.progress(`kernel ${kernel.release} (${kernel.image})`);
    const begun = Date.now();
    const folder = makeFolder();
    const initrd = join(folder, 'initramfs');
    const servers: Server[] = [];
    let qemu: ChildProcess | undefined;
    try {
      writeFileSync(initrd, initramfs(contents(plan)));
      const port = await listenOnce(join(folder, 'port'));
      const serial = await listenOnce(join(folder, 'serial'));
      servers.push(port.server, serial.server);
      qemu = startQemu(arch, kernel, plan, initrd, folder);
      const { line, hasKvm } = await begin(qemu, [port.socket, serial.socket], printer);
      if (!hasKvm) throw new Error(withoutKvm(kernel, plan));
      printer.progress(`ready after ${((Date.now() - begun) / 1000).toFixed(1)} s`);
      return new Lab(kernel.release, qemu, line, folder, servers);
    } catch (error) {
      endAll(qemu, folder, servers);
      throw error;
    }
  }

  async start(args: readonly string[], image?: HelperImage): Promise<LabStream> {
    if (!image) return this.#line.run([HELPER, ...args]);
    const path = `/tmp/image${this.#files++}`;
    await this.#line.put(path, readFileSync(image.path));
    return this.#line.run([HELPER, ...args, ...imageArguments(path, image.at)]);
  }

  close(): void {
    this.#line.lose('the lab was closed');
    endAll(this.#qemu, this.#folder, this.#servers);
  }
}

/** The longest path of a Unix socket, without the zero behind it. */
const LONGEST_SOCKET = 107;
/** Folders that go with this process, however it ends by itself. */
const ownFolders = new Set<string>();

/** A folder for sockets and the initramfs, which goes with this process; our own of processes that were killed go now. */
function makeFolder(): string {
  // QEMU ends a socket's path at a comma.
  const temporary = tmpdir();
  const fits =
    temporary.length + '/kvm-mmu-lab-4194304-XXXXXX/serial'.length <= LONGEST_SOCKET && !temporary.includes(',');
  const base = fits ? temporary : '/tmp';
  for (const name of readdirSync(base)) {
    const [, pid] = /^kvm-mmu-lab-(\d+)-/.exec(name) ?? [];
    if (pid === undefined || isAlive(Number(pid))) continue;
    try {
      if (statSync(join(base, name)).uid === process.getuid?.())
        rmSync(join(base, name), { recursive: true, force: true });
    } catch {
      // Somebody else was faster, or may do what we may not.
    }
  }
  const folder = mkdtempSync(join(base, `kvm-mmu-lab-${process.pid}-`));
  if (ownFolders.size === 0 && !watchesExit) {
    watchesExit = true;
    process.once('exit', () => {
      for (const each of ownFolders) rmSync(each, { recursive: true, force: true });
    });
  }
  ownFolders.add(folder);
  return folder;
}
let watchesExit = false;

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

function endAll(qemu: ChildProcess | undefined, folder: string, servers: readonly Server[]): void {
  qemu?.kill('SIGKILL');
  for (const server of servers) server.close();
  rmSync(folder, { recursive: true, force: true });
  ownFolders.delete(folder);
}

function contents(plan: ModulePlan): InitramfsEntry[] {
  const encoder = new TextEncoder();
  const list = plan.modules.map(({ file, parameters }) => `${file}${parameters === '' ? '' : ` ${parameters}`}\n`);
  const folders = ['dev', 'proc', 'sys', 'tmp', 'lab', 'lab/modules.d'];
  return [
    ...folders.map((name) => ({ name, mode: FOLDER })),
    // Before the device file system is mounted.
    { name: 'dev/console', mode: CHARACTER_DEVICE, device: [5, 1] },
    { name: 'init', mode: PROGRAM, data: readFileSync(built('lab-init')) },
    { name: HELPER.slice(1), mode: PROGRAM, data: readFileSync(built('kvm-mmu-helper')) },
    { name: 'lab/modules', mode: PROGRAM, data: encoder.encode(list.join('')) },
    ...plan.modules.map(({ file, bytes }) => ({ name: `lab/modules.d/${file}`, mode: PROGRAM, data: bytes })),
  ];
}

/** A socket in a folder of ours, to which QEMU connects: so there is no moment at which nobody listens yet. */
function listenOnce(path: string): Promise<{ readonly server: Server; readonly socket: Promise<Socket> }> {
  const server = createServer();
  const socket = new Promise<Socket>((resolve) => server.once('connection', resolve));
  return new Promise((resolve, reject) => {
    server.once('error', (error) => reject(new Error(`no socket for the lab at ${path}: ${error.message}`)));
    server.listen(path, () => resolve({ server, socket }));
  });
}

function startQemu(
  arch: LabArchitecture,
  kernel: LabKernel,
  plan: ModulePlan,
  initrd: string,
  folder: string,
): ChildProcess {
  const append = [`console=${arch.console}`, 'panic=-1', 'quiet', ...plan.append];
  const argv = [
    ...[arch.qemu, ...arch.machine, '-accel', 'tcg', '-m', MEMORY, '-nodefaults', '-display', 'none', '-no-reboot'],
    ...['-kernel', kernel.image, '-initrd', initrd, '-append', append.join(' ')],
    ...['-serial', 'stdio', '-chardev', `socket,id=serial,path=${join(folder, 'serial')}`, '-serial', 'chardev:serial'],
    ...['-chardev', `socket,id=port,path=${join(folder, 'port')}`, '-device', 'virtio-serial'],
    ...['-device', 'virtserialport,chardev=port,name=kvm-mmu'],
  ];
  // The kernel ends it with us, however we end. What setpriv lacks on a machine without it, the lab's own end makes up for.
  const guarded = spawnSync('setpriv', ['--pdeathsig', 'KILL', 'true']).status === 0;
  const [command, ...args] = guarded ? ['setpriv', '--pdeathsig', 'KILL', ...argv] : argv;
  const child = spawn(command!, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  dieWithUs(child);
  return child;
}

/** Waits for the first word of the lab, or for its end. */
function begin(
  qemu: ChildProcess,
  sockets: readonly Promise<Socket>[],
  printer: LabPrinter,
): Promise<{ readonly line: LabLine; readonly hasKvm: boolean }> {
  let console = '';
  let errors = '';
  const take = (text: string): void => {
    console = (console + text).slice(-CONSOLE_KEPT);
    printer.labConsole(text);
  };
  qemu.stdout!.setEncoding('utf8').on('data', take);
  qemu.stderr!.setEncoding('utf8').on('data', (text: string) => {
    errors = (errors + text).slice(-CONSOLE_KEPT);
  });
  return new Promise((resolve, reject) => {
    const lines: LabLine[] = [];
    const fail = (words: string): void => {
      clearTimeout(timer);
      for (const line of lines) line.lose(words);
      reject(new Error(words));
    };
    const timer = setTimeout(
      () => fail(`the lab's kernel has not come up within ${BOOT_MS / 1000} s${lastWords(console)}`),
      BOOT_MS,
    );
    for (const each of sockets)
      void each.then((socket) => {
        socket.on('error', () => {});
        const line: LabLine = new LabLine(streamOf(socket), {
          progress: printer.progress,
          problem: printer.problem,
          ready(_release, hasKvm) {
            clearTimeout(timer);
            resolve({ line, hasKvm });
          },
        });
        lines.push(line);
      });
    qemu.on('error', (error) => fail(`QEMU cannot be started: ${error.message}`));
    qemu.on('close', (code, signal) => {
      const how = signal === null ? `exit status ${code}` : `signal ${signal}`;
      fail(`the lab has ended (${how})${errors === '' ? lastWords(console) : `: ${errors.trim()}`}`);
    });
  });
}

/** The end of what the console said, where something is to be explained. */
function lastWords(console: string): string {
  const lines = console.split(/\r?\n/).filter((line) => line.trim() !== '');
  return lines.length === 0
    ? '; its console has said nothing'
    : `; the last of its console:\n${lines.slice(-8).join('\n')}`;
}

function withoutKvm({ release, image }: LabKernel, { modules, missing }: ModulePlan): string {
  const kvm = modules.some(({ file }) => file.startsWith('kvm'));
  const why = kvm
    ? 'its modules did not load'
    : `${missing.join(', ')} is not among its modules, and it is not built in (or "modules" is to say where they are)`;
  return `the kernel ${release} (${image}) has no /dev/kvm: ${why}`;
}

function streamOf(socket: Socket): ByteStream {
  return {
    name: 'the lab',
    write: (bytes) => void socket.write(bytes),
    onData: (take) => void socket.on('data', take),
    onClose: (take) => void socket.on('close', () => take('')),
    close: () => void socket.destroy(),
  };
}
