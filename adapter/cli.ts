#!/usr/bin/env node
import { RegimeError } from '../engine/guest/regime.ts';
import { decode } from './commands/decode.ts';
import { dump } from './commands/dump.ts';
import { UsageError } from './commands/usage.ts';
import { walk } from './commands/walk.ts';
import { ImageError } from './image/errors.ts';

const USAGE = `usage:
  kvm-mmu run FILE [--target emulator|kvm] [--policy NAME=VALUE]... [--schedule SCHEDULE] [--json] [--trace]
              [--max-steps N] [--helper PATH]
      runs a scenario, in the emulator or on this machine’s KVM; exits 1 when an expectation fails, 3 where it
      cannot run; --trace prints what KVM’s tracepoints would have recorded, of the emulator; --policy: what it does
      where KVM can do otherwise; --schedule: who makes the first steps there, as explore tells it (“vcpu0:56 vmm:14”);
      exits 3 when they cannot be made so
  kvm-mmu compare FILE --policy NAME=VALUE,VALUE… [--policy OTHER=VALUE]... [--json] [--max-steps N]
  kvm-mmu compare FILE [--target emulator,kvm] [--kernel KERNEL]... [LAB] [--helper PATH] [--json] [--max-steps N]
      runs a scenario in the emulator under each policy, or on several targets (kernels in labs among them), and tells
      what each cost and in what the tables differ at the end; of targets what KVM's tracepoints tell is counted
  kvm-mmu explore FILE [--policy NAME=VALUE,VALUE…|NAME=all] [--max-states N] [--unreduced] [--json]
      runs a scenario's tasks in every order in which they can be interleaved, in the emulator; tells what can go
      wrong, as a table of policies and hazards, and the schedule of fewest switches that leads there; exits 1 when
      something can happen that an “expect never” rules out, or another expect can fail (of those at the end, all that
      ask for no counter), 3 when there are more than N states (1000000)
  kvm-mmu decode 0x… [--format NAME] [--level N] [--maxphyaddr N] [--json]
      says what a table entry means; without --level at every level;
      --format help lists the formats
  kvm-mmu walk ADDRESS --memory IMAGE [REGISTERS] [--access read|write|fetch] [--user] [--json]
      translates an address in an image of physical memory, entry by entry; exits 1 when it faults
  kvm-mmu dump --memory IMAGE [REGISTERS] [--stage first|second] [--range START..END|START+SIZE]
               [--perm LETTERS] [--phys ADDRESS] [--merge] [--diff IMAGE] [--format text|json|qemu]
      lists what the tables map, a row a leaf, or joined with --merge; --perm wx!u: writable, executable and
      not the user’s; --phys: who maps this memory; --diff: what another image maps otherwise, exits 1 then
  kvm-mmu conform [--paging 4-level|pae|32-bit] [--seed N] [--cases N | --case N] [--json] [--helper PATH] [--guest PATH]
      makes random accesses through random tables, in the engine and on this machine’s KVM, and compares;
      exits 1 for a mismatch, 3 where it cannot run; --case: that one alone

  kvm-mmu record [-o FILE] [--all] [--helper PATH] -- COMMAND [ARGUMENT]...
      saves KVM’s events while a command runs as a trace.dat, which trace-cmd reads too; exits as the command does,
      127 when it is not there, 3 when nothing can be recorded. Recorded is all that KVM does on this host meanwhile,
      for others too; --all: also its walks of guests’ tables, entries and exits

  kvm-mmu lab run FILE --kernel KERNEL [--kernel KERNEL]... [LAB] [--json] [--max-steps N]
  kvm-mmu lab conform --kernel KERNEL [LAB] [--paging 4-level|pae|32-bit] [--seed N] [--cases N | --case N] [--json]
  kvm-mmu lab helper --kernel KERNEL [LAB] [-- HELPER-OPTION...]
      does the same on upstream KVM in a kernel of your choice, which QEMU runs in software emulation; with several
      kernels a scenario runs on each, side by side; helper: its standard input and output lead to the helper (for gdb,
      and for "connect"); exits 3 where the lab cannot be had
      KERNEL is a bzImage, a Debian package (its file or its name), a kernel tree that was built, or a folder with boot/
      and lib/modules/; LAB: --modules PATH (a folder, or a .ko in place of the kernel’s), --param NAME=VALUE (of a
      module, such as npt=0), --console (shows the kernel’s console), each any number of times

  IMAGE is raw memory from address 0 (or as --map GPA[+SIZE]@OFFSET says, any number of times), or an ELF core.
  REGISTERS: QEMU’s cores keep those of x86, and kdump’s say where the kernel’s tables are; else
      --cr3 X [--paging 32-bit|pae|4-level|5-level] [--cr0 X] [--cr4 X] [--efer X] [--cpu N]
      --ept EPTP | --npt NCR3 [--npt-paging 4-level|5-level]   second stage, alone or with --cr3
      --ttbr0 X --ttbr1 X --tcr X [--sctlr X] [--el2]          arm64
      --vttbr X --vtcr X                                       arm64 stage 2, alone or with the others
      --satp X, --hgatp X                                      RISC-V, alone or together
      --maxphyaddr N (x86)`;

const COMMANDS: Readonly<Record<string, (args: string[]) => number | Promise<number>>> = {
  // The scenario language is large: whoever does not run one need not load it.
  run: async (args) => (await import('./commands/run.ts')).run(args),
  explore: async (args) => (await import('./commands/explore.ts')).explore(args),
  compare: async (args) => (await import('./commands/compare.ts')).compare(args),
  // And what talks to KVM.
  lab: async (args) => (await import('./commands/lab.ts')).lab(args),
  record: async (args) => (await import('./commands/record.ts')).record(args),
  conform: async (args) => (await import('./commands/conform.ts')).conform(args),
  decode,
  walk,
  dump,
};

async function main(argv: string[]): Promise<number> {
  const [command, ...rest] = argv;
  if (command === undefined || command === 'help' || command === '--help' || command === '-h') {
    console.log(USAGE);
    return command === undefined ? 2 : 0;
  }
  const found = COMMANDS[command];
  if (!found) throw new UsageError(`unknown command ${command}`);
  return found(rest);
}

main(process.argv.slice(2)).then(
  (status) => {
    process.exitCode = status;
  },
  (error: unknown) => {
    const isUsage = error instanceof Error && error.name === 'UsageError';
    const isExpected = isUsage || error instanceof ImageError || error instanceof RegimeError;
    console.error(isExpected ? `kvm-mmu: ${(error as Error).message}` : error);
    if (isUsage) console.error('`kvm-mmu help` lists commands and options');
    process.exitCode = isExpected ? 2 : 70;
  },
);
