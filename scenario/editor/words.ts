import type { CounterName } from '../../engine/counters.ts';
import { REGISTERS, type RegisterName } from '../../engine/guest/registers.ts';

// What hovers and completions say, in one or two sentences.

export const KEYWORDS: Readonly<Record<string, string>> = {
  machine: 'The virtual machine: its memory, KVM’s second stage, and what its processor offers.',
  memory:
    'A memory slot: `memory START +SIZE`. `huge 2M` or `huge 1G`: the size of the host’s pages behind it. `read-only`: writes exit. `slot N`: its number.',
  huge: 'The host backs the slot with pages of this size, so that KVM can map it with them.',
  'read-only': 'KVM_MEM_READONLY: reads work, writes exit to userspace as MMIO.',
  slot: 'A number by which KVM knows a range of guest memory.',
  'second-stage':
    'Which tables translate guest-physical to host-physical: `tdp ept` (Intel) or `tdp npt` (AMD), `4-level` or `5-level`; or `shadow`: KVM shadows the guest’s own tables.',
  maxphyaddr: 'MAXPHYADDR: bits of a physical address, 32 … 52. Address bits above are reserved in table entries.',
  cpu: 'What the processor offers: `1g-pages`, `execute-only`, or `none`; without the line it has both. `l1tf`: it has that bug.',
  policy:
    'Where KVM can do a thing in more than one way: `policy page-split = eager` splits large pages when dirty logging starts, `lazy` at the first write. `roots` is what becomes of roots when the guest’s mode changes, `quadrant` how a shadow page’s part of a 32-bit table is found; `conversion` in which order memory becomes private or shared, `attribute-zap`, `attribute-errors` and `guest-memfd` how; `nx-huge-pages = on`: no large page is executable, as KVM’s module parameter nx_huge_pages has it; `tdp-mmu = off`: second-stage tables are shadow pages, as its tdp_mmu=N has it.',
  guest:
    'Page tables of the guest that exist before the vCPUs start: `guest NAME { … }`, or `guest NAME pae { … }` with another paging: 32-bit, pae, 4-level, 5-level. The name stands for the address of the root, as in `cr3 = NAME`.',
  tables:
    '`tables at GPA`: where the guest’s table pages are taken from, upwards. Without it: downwards from the end of the first slot.',
  map: '`map GVA -> GPA 2M` maps one page; `+8M` a range in the largest pages that fit; `+8M 4K` in pages of at most 4K. Then r--, rw-, r-x or rwx (the default), user or supervisor (the default), global, accessed, dirty, key N.',
  entry: '`entry GVA level N = VALUE` stores a raw table entry, malformed if you like.',
  level:
    'A level of the tables: 1 PTE (4K), 2 PDE (2M), 3 PDPTE (1G), 4 PML4E. `level(gpa)` is the level at which KVM’s tables map an address, 0 when they do not.',
  user: 'Of a page: accessible at CPL 3. Before an access: made at CPL 3.',
  supervisor: 'Of a page: accessible at CPL 0 to 2 only. Before an access: made at CPL 0.',
  implicit:
    'Before an access: the supervisor’s at any CPL, as to a descriptor table; SMAP stops it whatever RFLAGS.AC says.',
  global: 'The translation survives a write to CR3 while CR4.PGE is set.',
  accessed: 'The accessed bit is set from the start.',
  dirty: 'Of a page: the dirty bit is set from the start. `log dirty slot N on`: KVM notes which pages are written.',
  key: 'Protection key of a user page, 0 … 15: selects two bits of PKRU while CR4.PKE is set.',
  vcpu: '`vcpu N in GUEST { … }`: a virtual processor with paging on and CR3 at that guest’s tables. Without `in`, paging is off. In an expression: `vcpu[0].cr0.wp`.',
  host: 'A task of the host: what userspace and the rest of the kernel do to the machine meanwhile.',
  read: 'Loads 8 bytes, 4 in 32-bit and pae guests; or `read.1`, `.2`, `.4`, `.8`.',
  write:
    'Stores 8 bytes, 4 in 32-bit and pae guests; or `write.1`, `.2`, `.4`, `.8`: `write ADDRESS = VALUE`. Without a value it stores the step’s number.',
  fetch: 'Fetches an instruction.',
  invlpg: 'Drops the TLB’s entries for the page of an address.',
  repeat: '`repeat N as i { … }` runs its statements N times; i counts from 0.',
  loop: 'Runs its statements for ever.',
  unmap:
    'In a vcpu block the guest clears entries of its own tables; the TLB keeps what it has until invlpg. In a host block the host unmaps the memory behind a range: an MMU notifier.',
  protect: '`protect GVA +SIZE r-- user`: the guest changes the rights in its own tables.',
  expect: 'Must be true: in a block, at that point; outside, when every task has ended. `kvm-mmu run` fails otherwise.',
  wait: '`wait until CONDITION`: the task goes on once it holds.',
  until: '`wait until CONDITION`: the task goes on once it holds.',
  add: '`add slot N at GPA +SIZE`: userspace adds a memory slot.',
  delete: '`delete slot N`: userspace takes a memory slot away; KVM zaps what maps it.',
  move: '`move slot N to GPA`: the slot’s memory appears elsewhere; KVM zaps what maps it.',
  log: '`log dirty slot N on` or `off`: KVM write-protects the slot or uses dirty bits, and maps it in pages of 4K.',
  zap: '`zap GPA +SIZE`: kvm_zap_gfn_range. `zap all`: kvm_mmu_zap_all_fast, which makes every root obsolete.',
  migrate:
    '`migrate GPA +SIZE`: the host moves the pages behind a range to other frames. KVM unmaps them by its MMU notifier.',
  'recover-nx-huge-pages':
    '`recover-nx-huge-pages RATIO`: KVM’s worker runs once; of so many tables that stand for NX huge pages’ sake one goes, rounded up. Without a ratio: 60.',
  'swap-out':
    '`swap-out GPA +SIZE`: the host moves the memory behind a range to the disk. Who touches it waits, or lets a worker wait (`async-pf`).',
  'async-pf':
    '`async-pf GPA`: the guest lets KVM tell it when a page is swapped out, by a #PF with a token, and when it is there (MSR_KVM_ASYNC_PF_EN); flags and token stand at GPA. In user mode alone, unless `send-always` follows. `async-pf off`: no more.',
  'send-always': 'KVM_ASYNC_PF_SEND_ALWAYS: in the guest’s kernel, too.',
  vm: 'What protects the guests’ memory from the host: `vm snp` (with NPT), `vm tdx` (with EPT), `vm software-protected`; `ordinary`: nothing.',
  'guest-memfd':
    'The slot has a guest_memfd for its private pages (KVM_MEM_GUEST_MEMFD), in frames of their own. `guest-memfd 2M`: in large pages, which KVM does not do yet.',
  private:
    '`private GPA +SIZE` in a machine: private memory from the start. Before an access of the guest: made as private memory. Of the host: to a page’s private frame.',
  shared:
    'Before an access of the guest: made as shared memory, which the host sees. Of the host: to a page’s shared frame.',
  launch:
    '`launch GPA +SIZE`: private memory that is there when the guest starts, of SNP assigned to it and accepted, as the launch commands leave it.',
  'memory-fault':
    'What the VMM does about KVM_EXIT_MEMORY_FAULT: `convert` the page to the kind that the access was for, or `stop` the vCPU.',
  convert:
    '`convert GPA +SIZE private` or `shared`: KVM_SET_MEMORY_ATTRIBUTES. `convert (0x10_0000 + 8K * i) +4K private`, in a loop with `as i`. In a vcpu block the guest asks for it (page state change, MapGPA).',
  pvalidate:
    '`pvalidate ADDRESS` or `pvalidate ADDRESS 2M`: an SNP guest accepts a page that was assigned to it; `off` behind it takes that back.',
  rmpadjust:
    '`rmpadjust ADDRESS vmpl N rw-`: an SNP guest says what a VMPL that is less privileged may do with a page; `2M` behind the address, of a large one; `off`: nothing.',
  vmpl: '`vmpl N`: the vCPU of an SNP guest goes on at that privilege level, 0 … 3, of which 0 may do all.',
  asid: '`asid N`: the guest for which `rmpupdate` gives a frame away.',
  rmpupdate:
    '`rmpupdate GPA private` or `shared`: the host changes the RMP’s entry of a page’s private frame, and nothing else. `2M` behind the address: of 512; `as GPA`: as another page; `asid N`: another guest’s than this one’s, which is 1.',
  accept:
    '`accept GPA`: a TDX guest accepts a page of 4K that was added to it (TDG.MEM.PAGE.ACCEPT), which empties it. The address is guest-physical, whatever the guest’s tables.',
  punch:
    '`punch GPA +SIZE`: the VMM frees pages of guest_memfd (FALLOC_FL_PUNCH_HOLE); of SNP they are the host’s again.',
  never:
    '`expect never HAZARD`: it must not happen, in this run, or where `kvm-mmu explore` tries every order of the tasks’ steps, in any.',
  sanitize:
    'Checks after every step that KVM’s books agree: reverse maps, write protection, roles of roots, what TLBs keep. A breach ends the task.',
  invpcid:
    '`invpcid TYPE, PCID, ADDRESS`: 0 invalidates an address of a PCID, 1 all of a PCID, 2 everything, 3 everything but what is global.',
  cpuid: '`cpuid maxphyaddr N`: userspace changes the width of the guests’ physical addresses (KVM_SET_CPUID2).',
  nested:
    '`nested NAME { … }`: second-stage tables of L1’s, which KVM runs, for guests of its own: `map` leads from L2’s physical addresses to L1’s. 4-level or 5-level; `no-ad`: EPTP without accessed and dirty bits.',
  enter: '`enter GUEST { … }`: L1 runs a guest of its own (VMRESUME, VMRUN) for these statements; then that exits.',
  smm: '`smm { … }`: a system-management interrupt; its handler does these, without paging and in an address space of its own.',
  invept: '`invept NAME` or `invept all`: L1 invalidates what is cached of its tables for its guests.',
  inject: '`inject NAME`: from here on KVM makes a mistake, such as `root-leak` or `quadrant-copied`.',
  poke: '`poke GPA level N = VALUE`: overwrites an entry of KVM’s tables behind its back, as a bug would.',
  'execute-only': 'EPT entries may allow fetches and neither reads nor writes.',
  l1tf: 'L1 terminal fault, a bug of Intel’s processors: an entry that is not present may still lead to what the L1 cache has. KVM’s MMIO markers therefore have the 5 highest address bits set, and the address’s own bits above them.',
  '1g-pages': 'Entries at level 3 may map pages of 1G, in the guest’s tables and in KVM’s.',
  ept: 'Intel’s extended page tables.',
  npt: 'AMD’s nested page tables: the x86-64 format, walked as user accesses.',
  shadow: 'Shadow paging: the processor walks KVM’s tables alone, which KVM makes of the guest’s own.',
  tdp: 'Two-dimensional paging: the processor walks the guest’s tables and KVM’s.',
};

export const REGISTER_WORDS: Readonly<Record<RegisterName, string>> = {
  cr0: 'Control register 0: paging and write protection.',
  cr3: 'Address of the guest’s root table. Writing it flushes the TLB’s entries that are not global.',
  cr4: 'Control register 4: extensions of paging.',
  efer: 'Extended feature enable register: long mode and no-execute.',
  rflags: 'Flags; AC decides over SMAP.',
  pkru: 'Two bits for each protection key: bit 2k forbids access, bit 2k + 1 forbids writes.',
  cpl: 'Current privilege level: 3 is user mode, 0 the kernel.',
};

export const BIT_WORDS: Readonly<Record<string, string>> = {
  'cr0.pe': 'protected mode.',
  'cr0.wp': 'write protect: the supervisor, too, may not write to read-only pages.',
  'cr0.pg': 'paging.',
  'cr4.pse': 'pages of 4M in 32-bit paging.',
  'cr4.pae': 'entries of 64 bits; long mode needs it.',
  'cr4.pge': 'global pages.',
  'cr4.la57': '5-level paging; not modelled yet.',
  'cr4.pcide':
    'process-context identifiers: bits 11:0 of CR3 name an address space, and bit 63 of a write keeps its TLB entries.',
  'cr4.smep': 'the supervisor may not execute user pages.',
  'cr4.smap': 'the supervisor may not read or write user pages, unless RFLAGS.AC is set.',
  'cr4.pke': 'protection keys of user pages, through PKRU.',
  'cr4.cet': 'shadow stacks; not modelled yet.',
  'cr4.pks': 'protection keys of supervisor pages; not modelled yet.',
  'efer.lme': 'long mode enable.',
  'efer.lma': 'long mode active.',
  'efer.nxe': 'bit 63 of an entry forbids execution; without it that bit is reserved.',
  'rflags.ac': 'allows the supervisor’s accesses to user pages in spite of SMAP.',
};

export const VALUE_WORDS: Readonly<
  Record<
    | CounterName
    | 'step'
    | 'cr2'
    | 'loaded'
    | 'error_code'
    | 'mmu_invalidate_seq'
    | 'slots.generation'
    | 'tlb.entries'
    | 'vmpl',
    string
  >
> = {
  accesses: 'Loads, stores and fetches that were started.',
  'tlb.hits': 'Pages found in a TLB.',
  'tlb.misses': 'Pages that a TLB did not have.',
  'tlb.flushes': 'Times that a whole TLB was emptied.',
  'walks.references': 'Table entries that walks read, the guest’s and KVM’s.',
  exits: 'VM exits.',
  entries: 'VM entries for which KVM had something to do first.',
  'faults.guest': 'Page faults delivered to the guest (#PF).',
  'faults.second': 'EPT violations or NPT faults.',
  'faults.misconfig': 'EPT misconfigurations.',
  'faults.mmio': 'Faults on addresses that no slot holds.',
  'faults.fixed': 'Second-stage faults that KVM fixed by mapping (RET_PF_FIXED).',
  'faults.spurious': 'Second-stage faults that something else had fixed already (RET_PF_SPURIOUS).',
  'faults.fast': 'Second-stage faults that fast_page_fault fixed without mmu_lock.',
  'faults.retried': 'Second-stage faults that had to be tried again (RET_PF_RETRY).',
  'faults.read_only': 'Writes to read-only slots.',
  emulated: 'Accesses that userspace completed.',
  'tables.built': 'Table pages of KVM’s that were made, roots aside.',
  'tables.reused': 'Shadow pages that were there already where one was needed (kvm_mmu_get_page, existing).',
  'tables.zapped': 'Shadow pages that were taken out of use (kvm_mmu_prepare_zap_page).',
  'tables.flooded': 'Shadow pages that were given up because their table was written to again and again.',
  'tables.recycled': 'Shadow pages that went because there were too many.',
  'tables.freed': 'Table pages of KVM’s that were freed, roots aside.',
  'roots.built': 'Root tables that KVM made.',
  'roots.freed': 'Root tables that KVM freed.',
  'roots.released': 'References to roots that vCPUs gave up.',
  'roots.unloads': 'Times that a vCPU gave up all of its roots (kvm_mmu_unload).',
  'roots.hits': 'Times that a root for a new CR3 or role was among those kept.',
  'roots.misses': 'Times that it was not.',
  'modes.changed': 'Writes that changed CR0, CR4 or EFER.',
  'nested.entries': 'Times that L1 entered a guest of its own.',
  'nested.exits': 'VM exits of such guests that L1 got.',
  'async_pf.not_present': 'Times that a guest was told by #PF that a page is swapped out.',
  'async_pf.halts': 'Times that a vCPU halted instead until its page was there.',
  'async_pf.ready': 'Times that a guest was told that a page is there.',
  nx_lpage_splits:
    'Tables that stand where NX huge pages alone forbid a large page: KVM’s statistic, which goes down again.',
  'sptes.changed': 'Entries of KVM’s tables that changed.',
  'faults.rmp': 'Nested page faults that the RMP made.',
  'faults.vc': 'Accesses to pages that the guest had not accepted (#VC).',
  'exits.memory_fault': 'KVM_EXIT_MEMORY_FAULT: accesses of the other kind than the page is.',
  conversions: 'KVM_SET_MEMORY_ATTRIBUTES ioctls.',
  'rmp.updates': 'RMPUPDATE instructions that changed the RMP.',
  hazards: 'Things that happened and must not: stale translations, for example.',
  'expects.passed': 'Expectations that held.',
  'expects.failed': 'Expectations that did not hold.',
  warnings: 'Warnings, as the kernel would print them.',
  step: 'Steps made so far: the machine’s clock.',
  cr2: 'The address of the vCPU’s last page fault.',
  loaded: 'What the vCPU’s last read found.',
  vmpl: 'The privilege level at which the vCPU of an SNP guest runs; 0 of all others.',
  error_code: 'Error code of the vCPU’s last page fault.',
  mmu_invalidate_seq: 'kvm->mmu_invalidate_seq: grows with each invalidation; a fault that began before retries.',
  'slots.generation': 'Grows with each change of the memory slots.',
  'tlb.entries': 'Entries in the vCPU’s TLB now.',
};

export const registerWord = (name: string): string | undefined =>
  REGISTER_WORDS[REGISTERS.find((known) => known === name)!];
