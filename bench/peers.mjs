// How long listing every page mapping takes beside other tools, on the same stopped machine, measured in one run.
//
//   GDB_PT_DUMP=FOLDER GEF=FOLDER node bench/peers.mjs [GUEST…]          guests: x86-4level, arm64 (both when none is named)
//
// Boots the guest (test/guests/boot.mjs, which downloads Debian's kernel), saves its memory and keeps QEMU stopped. Then
//   kvm-mmu      the whole process, on the memory just saved, which the system still caches (saving is timed apart)
//   QEMU         `info tlb` (x86), from sending the command to having the last byte of the answer
//   gdb-pt-dump  https://github.com/martinradev/gdb-pt-dump, checked out in $GDB_PT_DUMP: the whole gdb process, attached
//   gef          https://github.com/bata24/gef, checked out in $GEF: likewise
// Every process writes to a file. What is missing is skipped by name. Needs dist/cli.cjs (npm run build).

import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const script = fileURLToPath(import.meta.url);
const root = path.resolve(path.dirname(script), '..');
const cli = path.join(root, 'dist/cli.cjs');

const ROUNDS = 5;
/** What takes longer than this is measured once, without a warm-up. */
const SLOW_MS = 20_000;
const LIMIT_MS = 900_000;

const guests = {
  'x86-4level': {
    qemu: 'qemu-system-x86_64',
    debian: 'qemu-system-x86',
    gdbName: 'i386:x86-64',
    infoTlb: true,
    // Without it gef leaves out tables whose entries are all alike: on this guest most of the rows.
    gefAll: '--include-kasan',
    image: (folder) => ['--memory', path.join(folder, 'core.elf')],
    save: (file) => ['dump-guest-memory', { paging: false, protocol: `file:${file}` }],
  },
  arm64: {
    qemu: 'qemu-system-aarch64',
    debian: 'qemu-system-arm',
    gdbName: 'aarch64',
    gefAll: '',
    image: (folder, { registers, ram }) => [
      ...['--memory', path.join(folder, 'memory.raw')],
      ...ram.flatMap(({ gpa, fileOffset }) => ['--map', `${gpa}@${Number(fileOffset)}`]),
      ...['ttbr0', 'ttbr1', 'tcr'].flatMap((name) => [`--${name}`, registers[`${name}_el1`]]),
    ],
    save: (file, [{ gpa, size }]) => ['pmemsave', { val: Number(gpa), size: Number(size), filename: file }],
  },
};

// -------------------------------------------------------------------------------------------------------------- QEMU

/** QEMU's machine protocol; says when the last byte of an answer came, before anything is made of it. */
class Qmp {
  #chunks = [];
  #waiting;

  static async open(file) {
    const qmp = new Qmp();
    qmp.socket = net.createConnection(file);
    qmp.socket.on('data', (chunk) => qmp.#receive(chunk, performance.now()));
    const gone = () => qmp.#waiting?.reject(new Error('QEMU closed its monitor'));
    await once(qmp.socket, 'connect');
    qmp.socket.on('close', gone).on('error', gone);
    await qmp.run('qmp_capabilities');
    return qmp;
  }

  #receive(chunk, at) {
    this.#chunks.push(chunk);
    if (!chunk.includes(10)) return;
    const lines = Buffer.concat(this.#chunks).toString().split('\n');
    this.#chunks = [Buffer.from(lines.pop())];
    for (const line of lines.filter((text) => text.trim())) {
      const message = JSON.parse(line);
      if ('return' in message) this.#waiting?.resolve({ value: message.return, at });
      else if ('error' in message) this.#waiting?.reject(new Error(`QEMU: ${message.error.desc}`));
    }
  }

  async timed(execute, args) {
    const answer = new Promise((resolve, reject) => {
      this.#waiting = { resolve, reject };
    });
    const start = performance.now();
    this.socket.write(`${JSON.stringify({ execute, arguments: args })}\n`);
    const { value, at } = await answer;
    return { value, ms: at - start };
  }

  async run(execute, args) {
    return (await this.timed(execute, args)).value;
  }

  async monitor(line) {
    const { value, ms } = await this.timed('human-monitor-command', { 'command-line': line });
    return { text: value.replaceAll('\r\n', '\n'), ms };
  }
}

// -------------------------------------------------------------------------------------------------------------- tools

const found = (program) =>
  (process.env.PATH ?? '').split(':').some((folder) => folder && fs.existsSync(path.join(folder, program)));

const gdbOutput = (gdb, ...commands) => {
  const args = ['-nx', '-batch', ...commands.flatMap((command) => ['-ex', command])];
  const { stdout, stderr } = spawnSync(gdb, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
  return `${stdout}${stderr}`;
};

/** A gdb that knows the architecture and has Python: {gdb} or {missing}. */
function findGdb(architecture) {
  const there = ['gdb', 'gdb-multiarch'].filter(found);
  if (!there.length) return { missing: 'gdb is missing' };
  const able = there.filter((gdb) => !/Undefined item/.test(gdbOutput(gdb, `set architecture ${architecture}`)));
  if (!able.length) return { missing: `gdb-multiarch is missing (gdb does not know ${architecture})` };
  const gdb = able.find((name) => /\bpython 3\b/.test(gdbOutput(name, 'python print("python", 3)')));
  return gdb ? { gdb } : { missing: `${able[0]} has no Python` };
}

const colours = new RegExp(`${String.fromCharCode(27)}\\[[0-9;]*[A-Za-z]`, 'g');
const plain = (text) => text.replace(colours, '');

const units = { K: 2n ** 10n, M: 2n ** 20n, G: 2n ** 30n, T: 2n ** 40n };
const kvmMmuRow = /^0x[0-9a-f]+ 0x[0-9a-f]+ +(?<count>\d+)(?<unit>[KMGT]) /;
// QEMU does not say how large a page is.
const qemuRow = /^[0-9a-f]{16}: [0-9a-f]{16} /;
const ptRow = /^\s*0x[0-9a-f]+ : +(?<length>0x[0-9a-f]+) /;
// A star stands for each of sixteen digits.
const gefRow = /^0x(?<start>[0-9a-f*]+)-0x\S+ +\S+ +(?<length>0x[0-9a-f]+) /;

/** How many rows there are, and how many bytes they map where they say so. */
function countRows(text, row) {
  let rows = 0;
  let bytes = 0n;
  for (const line of plain(text).split('\n')) {
    const groups = row.exec(line);
    if (!groups) continue;
    rows++;
    const { length, start, count, unit } = groups.groups ?? {};
    if (length) bytes += BigInt(length) << BigInt(4 * ((start ?? '').split('*').length - 1));
    else if (unit) bytes += BigInt(count) * units[unit];
  }
  return { rows, bytes };
}

/** The peers and ours, in the order of the table: {tool, lists, row, measure} or {tool, skipped}. */
function tools({ guest, saved, folder, gdbSocket, qmp, scratch }) {
  const all = [];
  const output = path.join(scratch, 'output');
  const errors = path.join(scratch, 'errors');

  const run = (tool, lists, row, command, args, environment = {}) => {
    const measure = () => {
      const files = [output, errors].map((file) => fs.openSync(file, 'w'));
      const options = {
        stdio: ['ignore', ...files],
        env: { ...process.env, ...environment },
        timeout: LIMIT_MS,
        killSignal: 'SIGKILL',
      };
      const start = performance.now();
      const { status, signal, error } = spawnSync(command, args, options);
      const ms = performance.now() - start;
      files.map((file) => fs.closeSync(file));
      const text = () => fs.readFileSync(output, 'utf8');
      const complaint = () => `${fs.readFileSync(errors, 'utf8')}${error ?? ''}`;
      return { ms, text, complaint, failed: Boolean(error || signal || status) };
    };
    all.push({ tool, lists, row, measure });
  };

  const image = guest.image(folder, saved);
  const ours = (lists, row, [command, ...operands], ...options) => {
    const tool = ['kvm-mmu', command, ...options].join(' ');
    run(tool, lists, row, process.execPath, [cli, command, ...operands, ...image, ...options]);
  };
  if (guest.infoTlb) ours('every row', qemuRow, ['dump'], '--format', 'qemu');
  ours('every row', kvmMmuRow, ['dump']);
  ours('merged ranges', kvmMmuRow, ['dump'], '--merge');

  if (guest.infoTlb) {
    const measure = async () => {
      const { text, ms } = await qmp.monitor('info tlb');
      return { ms, text: () => text, complaint: () => text.slice(0, 200), failed: false };
    };
    all.push({ tool: 'QEMU info tlb', lists: 'every row', row: qemuRow, measure });
  } else all.push({ tool: 'QEMU info tlb', skipped: `${guest.qemu} has no such command` });

  const { gdb, missing } = findGdb(guest.gdbName);
  const attach = `target remote ${gdbSocket}`;
  // At "disconnect" gdb closes the socket without a word. Were it to detach, QEMU would run on; at "kill" it would end.
  const inGdb = (tool, lists, row, ...commands) => {
    const quiet = ['set confirm off', 'set pagination off', 'set history save off'];
    const last = ['set history save off', 'disconnect'];
    const args = ['-nx', '-batch', ...[...quiet, ...commands, ...last].flatMap((command) => ['-ex', command])];
    run(tool, lists, row, gdb, args, { TMPDIR: scratch, GEF_RC: path.join(scratch, 'no-gef.rc') });
  };
  const peer = (tool, variable, file, add) => {
    const place = process.env[variable];
    const source = place && path.resolve(place, file);
    if (!place) all.push({ tool, skipped: `${variable} is not set` });
    else if (!fs.existsSync(source)) all.push({ tool, skipped: `${variable} holds no ${file}` });
    else if (missing) all.push({ tool, skipped: missing });
    else add(`source ${source}`);
  };
  peer('gdb-pt-dump', 'GDB_PT_DUMP', 'pt.py', (source) => {
    if (!found('pgrep')) return all.push({ tool: 'gdb-pt-dump', skipped: 'pgrep is missing' });
    const list = (lists, command) => inGdb(`gdb-pt-dump ${command}`, lists, ptRow, attach, source, command);
    // By itself it follows entries of one table that are alike only once.
    list('merged ranges, aliases once', 'pt');
    list('ranges of one physical range', 'pt -force_traverse_all -phys_verbose');
  });
  // gef learns the architecture when gdb attaches, so it is read first; it shows registers and code at every stop else.
  peer('gef', 'GEF', 'gef.py', (source) => {
    const list = (lists, command) =>
      inGdb(`gef ${command}`, lists, gefRow, source, 'gef config context.enable False', attach, command);
    list('merged ranges', ['pagewalk -n -q', guest.gefAll].join(' ').trim());
    list('every row', ['pagewalk -n -q --no-merge', guest.gefAll].join(' ').trim());
  });

  if (gdb) inGdb('gdb, to attach and leave', 'nothing', undefined, attach);
  const last = spawnSync(process.execPath, [cli, 'dump', ...image], { encoding: 'utf8', maxBuffer: 1 << 30 });
  if (last.status !== 0) throw new Error(`kvm-mmu dump: ${last.stderr}`);
  ours('one address', undefined, ['walk', last.stdout.trimEnd().split('\n').at(-1).split(' ')[0]]);
  run('node -e 0', 'nothing', undefined, process.execPath, ['-e', '0']);
  return all;
}

// ------------------------------------------------------------------------------------------------------------ measure

async function measureAll() {
  const { GUEST_NAME: name, GUEST_OUT: folder, GUEST_QMP: qmpSocket, GUEST_GDB: gdbSocket } = process.env;
  const guest = guests[name];
  if (!guest) throw new Error(`${name}: no measure is known for this guest`);
  const saved = JSON.parse(fs.readFileSync(path.join(folder, 'registers.json'), 'utf8'));
  const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'peers-'));
  const qmp = await Qmp.open(qmpSocket);
  try {
    const notes = [];
    let before = (await qmp.monitor('info registers')).text;
    /** The machine must stand as it was saved; stops it when it runs. */
    const stands = async (tool) => {
      const { running } = await qmp.run('query-status');
      if (running) await qmp.run('stop');
      const now = (await qmp.monitor('info registers')).text;
      if (!running && now === before) return;
      const cr3 = (text) => /\bCR3=\w+/.exec(text)?.[0];
      const tables = cr3(now) === cr3(before) ? 'other registers' : `${cr3(now)} instead of ${cr3(before)}`;
      notes.push(`${tool} ${running ? 'let the machine run' : 'changed the machine'}: ${tables}; not what was saved`);
      before = now;
    };

    const all = tools({ guest, saved, folder, gdbSocket, qmp, scratch });
    const load = os.loadavg()[0];
    const times = new Map();
    for (const tool of all.filter(({ skipped }) => !skipped)) {
      // The warm-up says what there is to list.
      const { ms, text, complaint, failed } = await tool.measure();
      await stands(tool.tool);
      const listed = text();
      Object.assign(tool, tool.row && countRows(listed, tool.row));
      if (tool.row && !tool.rows) {
        const said = plain(`${complaint()}\n${listed}`);
        const module = /No module named '([^']+)'/.exec(said)?.[1];
        const last = said.trim().split('\n').at(-1);
        tool.skipped = module ? `gdb's Python has no module ${module}` : `it listed nothing: ${last}`;
      } else if (tool.row === qemuRow) {
        const exact = fs.readFileSync(path.join(folder, 'info-tlb.txt'), 'utf8').trimEnd() === listed.trimEnd();
        if (!exact) notes.push(`${tool.tool}: not the rows that QEMU gave when the memory was saved`);
      } else if (failed) notes.push(`${tool.tool}: did not end well: ${plain(complaint()).trim().split('\n').at(-1)}`);
      times.set(tool, ms > SLOW_MS ? [ms] : []);
    }
    // Round by round, so that whatever else the processor does falls on all of them alike.
    for (let round = 0; round < ROUNDS; round++) {
      for (const tool of all.filter((one) => !one.skipped && !(times.get(one)[0] > SLOW_MS))) {
        times.get(tool).push((await tool.measure()).ms);
        await stands(tool.tool);
      }
    }

    const copy = path.join(scratch, 'memory');
    const { ms: savingMs } = await qmp.timed(...guest.save(copy, saved.ram));

    const sorted = (tool) => times.get(tool).toSorted((a, b) => a - b);
    const median = (tool) => sorted(tool)[Math.floor(times.get(tool).length / 2)];
    const first = all[0];
    const cells = all.map((tool) => {
      if (tool.skipped) return [tool.tool, `skipped: ${tool.skipped}`];
      return [
        tool.tool,
        tool.lists,
        tool.row ? String(tool.rows) : '',
        tool.bytes ? (Number(tool.bytes / 1024n) / 1024).toFixed(1) : '',
        sorted(tool)[0].toFixed(1),
        times.get(tool).length > 1 ? median(tool).toFixed(1) : 'once',
        (median(tool) / median(first)).toFixed(2),
      ];
    });
    const head = ['tool', 'lists', 'rows', 'MiB mapped', 'best ms', 'median ms', 'ratio'];
    const width = head.map((word, i) =>
      Math.max(...[head, ...cells].map((row) => (row.length < head.length && i ? 0 : row[i].length), word.length)),
    );
    const line = (row) => {
      if (row.length < head.length) return `${row[0].padEnd(width[0])}  ${row[1]}`;
      return row.map((cell, i) => (i < 2 ? cell.padEnd(width[i]) : cell.padStart(width[i]))).join('  ');
    };
    console.log(`\n${name}: ${saved.kernel}, QEMU ${saved.qemu}, Node ${process.versions.node}`);
    console.log(`${os.cpus()[0].model}, ${os.cpus().length} processors, load ${load.toFixed(2)} before`);
    console.log([head, ...cells].map(line).join('\n'));
    console.log(`ratio: of medians, to "${first.tool}" in the first row; ${ROUNDS} rounds after a warm-up`);
    console.log(`saving the memory once through QMP, which is in none of the rows: ${savingMs.toFixed(0)} ms`);
    for (const note of new Set(notes)) console.log(`! ${note}`);
  } finally {
    qmp.socket.destroy();
    fs.rmSync(scratch, { recursive: true, force: true });
  }
}

// --------------------------------------------------------------------------------------------------------------- main

function bootAll(names) {
  if (!fs.existsSync(cli)) throw new Error('dist/cli.cjs is missing: npm run build');
  const unknown = names.find((name) => !Object.hasOwn(guests, name));
  if (unknown) throw new Error(`${unknown}: no such guest; there are ${Object.keys(guests).join(', ')}`);
  const out = fs.mkdtempSync(path.join(os.tmpdir(), 'peers-guests-'));
  const boot = path.join(root, 'test/guests/boot.mjs');
  try {
    for (const name of names.length ? names : Object.keys(guests)) {
      if (!found(guests[name].qemu)) {
        console.log(`${name}: skipped: ${guests[name].qemu} is missing (Debian: ${guests[name].debian})`);
        continue;
      }
      const env = { ...process.env, GUESTS_OUT: out, PEERS_NODE: process.execPath, PEERS_SCRIPT: script };
      const args = [boot, name, '--then', '"$PEERS_NODE" "$PEERS_SCRIPT"'];
      const { status } = spawnSync(process.execPath, args, { stdio: 'inherit', env });
      if (status !== 0) process.exitCode = 1;
      fs.rmSync(path.join(out, name), { recursive: true, force: true });
    }
  } finally {
    fs.rmSync(out, { recursive: true, force: true });
  }
}

try {
  if (process.env.GUEST_QMP) await measureAll();
  else bootAll(process.argv.slice(2));
} catch (error) {
  console.error(error.message);
  process.exitCode = 2;
}
