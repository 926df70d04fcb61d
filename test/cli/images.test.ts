import assert from 'node:assert/strict';
import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { elfCore, ImageMaker, qemuNote, vmcoreinfo, x86Image } from '../image-fixture.ts';
import { cli, file, folder } from './cli.ts';

const raw = file('raw', x86Image());
const CR3 = ['--cr3', '0x1000'];
const ROWS = [
  '0x0000000000400000 0x0000000000008000     4K r-xu  PTE A D',
  '0x0000000000401000 0x0000000000009000     4K r-xu  PTE A D',
  '0x0000000000402000 0x000000000000b000     4K rw-u  PTE A D',
  '0x0000000000600000 0x0000000000000000     2M rwxs  PDE A D',
  '0xffffffff80000000 0x000000000000a000     4K rwxs  PTE A D G',
];
const rows = (...args: string[]): string[] => {
  const { status, out, err } = cli('dump', ...args);
  assert.equal(status, 0, err);
  return out === '' ? [] : out.trimEnd().split('\n');
};

test('dump lists leaves in the order of addresses, with the rights that all levels leave', () => {
  assert.deepEqual(rows('--memory', raw, ...CR3), ROWS);
});

test('dump joins, filters and says who maps a physical address', () => {
  assert.deepEqual(rows('--memory', raw, ...CR3, '--merge').slice(0, 2), [
    '0x0000000000400000 0x0000000000008000     8K r-xu  PTE A D',
    ROWS[2],
  ]);
  // A page that is mapped again and again, as a kernel's zero page is, and what follows it.
  const maker = new ImageMaker(8).entry(1, 0, 0x2067n).entry(2, 0, 0x3067n).entry(3, 0, 0x4067n);
  for (let index = 0; index < 9; index++) maker.entry(4, index, 0x7067n);
  const again = file('again', maker.entry(4, 9, 0x8067n).entry(4, 10, 0x9067n).bytes);
  assert.deepEqual(rows('--memory', again, ...CR3, '--merge'), [
    '0x0000000000000000 0x0000000000007000    36K rwxu  PTE A D, one page of 4K again and again',
    '0x0000000000009000 0x0000000000008000     8K rwxu  PTE A D',
  ]);
  assert.equal(JSON.parse(rows('--memory', again, ...CR3, '--merge', '--json')[0]!).repeated, 4096);
  assert.deepEqual(rows('--memory', raw, ...CR3, '--range', '0x401000+8K'), ROWS.slice(1, 3));
  assert.deepEqual(rows('--memory', raw, ...CR3, '--range', '0x402fff..0xffffffff80000001'), ROWS.slice(2));
  assert.deepEqual(rows('--memory', raw, ...CR3, '--perm', 'u'), ROWS.slice(0, 3));
  assert.deepEqual(rows('--memory', raw, ...CR3, '--perm', 'wx'), ROWS.slice(3));
  assert.deepEqual(rows('--memory', raw, ...CR3, '--perm', '!x'), [ROWS[2]]);
  assert.deepEqual(rows('--memory', raw, ...CR3, '--perm', 's'), ROWS.slice(3));
  assert.deepEqual(rows('--memory', raw, ...CR3, '--phys', '0x9123'), [ROWS[1], ROWS[3]]);
  assert.deepEqual(rows('--memory', raw, ...CR3, '--phys', '0x200000'), []);
});

test('dump prints QEMU’s layout and JSON lines', () => {
  assert.deepEqual(rows('--memory', raw, ...CR3, '--format', 'qemu'), [
    '0000000000400000: 0000000000008000 ---DA--U-',
    '0000000000401000: 0000000000009000 ---DA--U-',
    '0000000000402000: 000000000000b000 X--DA--UW',
    '0000000000600000: 0000000000000000 --PDA---W',
    'ffffffff80000000: 000000000000a000 -G-DA---W',
  ]);
  const [first] = rows('--memory', raw, ...CR3, '--json');
  assert.deepEqual(JSON.parse(first!), {
    input: '0x400000',
    output: '0x8000',
    size: 4096,
    rights: 'r-xu',
    supervisor: 'r-x',
    user: 'r-x',
    level: 1,
    entry: '0x8065',
    register: 'CR3',
  });
});

test('dump compares two images, and its status says whether they differ', () => {
  const changed = new ImageMaker(16);
  x86Image().copy(changed.bytes);
  const other = file('other', changed.entry(4, 1, 0n).entry(4, 3, 0xc067n).entry(7, 0, 0xa161n).bytes);
  const { status, out } = cli('dump', '--memory', raw, ...CR3, '--diff', other);
  assert.equal(status, 1);
  assert.equal(
    out,
    `- ${ROWS[1]}\n+ 0x0000000000403000 0x000000000000c000     4K rwxu  PTE A D\n- ${ROWS[4]}\n+ ${ROWS[4]!.replace('rwxs', 'r-xs')}\n`,
  );
  assert.deepEqual(cli('dump', '--memory', raw, ...CR3, '--diff', raw), { status: 0, out: '', err: '' });
});

test('walk explains an address level by level, and faults have a status', () => {
  const { status, out } = cli('walk', '0x400123', '--memory', raw, ...CR3);
  assert.equal(status, 0);
  assert.deepEqual(out.trimEnd().split('\n').slice(1), [
    '  1  PML4E 0  at 0x1000                   0x2067  rwxu table at 0x2000  [W U A]',
    '  2  PDPTE 0  at 0x2000                   0x3067  rwxu table at 0x3000  [W U A]',
    '  3  PDE 2    at 0x3010                   0x4067  rwxu table at 0x4000  [W U A]',
    '  4  PTE 0    at 0x4000                   0x8065  r-xu 4K page at 0x8000  [U A D]',
    'gva 0x400123 is gpa 0x8123 (4K page, r-xu)',
  ]);
  const write = cli('walk', '0x400123', '--memory', raw, ...CR3, '--access', 'write', '--user');
  assert.equal(write.status, 1);
  assert.match(write.out, /#PF, error code 0x7 P\|W\|U: PTE 0 is read-only \(W=0\)$/m);
  assert.match(
    cli('walk', '0x800000000000', '--memory', raw, ...CR3).out,
    /0x800000000000 is not canonical \(bits 63:47 differ\): #GP/,
  );
  const json = JSON.parse(cli('walk', '0x600fff', '--memory', raw, ...CR3, '--json').out);
  assert.deepEqual([json.end, json.gpa, json.guestSize, json.references.length], ['done', '0xfff', 2097152, 3]);
});

test('a raw image with holes is placed by --map', () => {
  const path = file('holes', Buffer.concat([Buffer.alloc(4096), x86Image()]));
  assert.deepEqual(rows('--memory', path, '--map', '0+64K@4096', ...CR3), ROWS);
  // Tables at 0x1000 … 0x7fff, and frames 8 to 15 elsewhere: what leaves point to need not be there.
  assert.deepEqual(rows('--memory', raw, '--map', '0+32K@0', '--map', '0x100000@32K', ...CR3), ROWS);
  assert.match(
    cli('walk', '0x400123', '--memory', raw, '--map', '0+32K@0', ...CR3).out,
    /gva 0x400123 is gpa 0x8123 .*to where there is no memory/,
  );
});

test('an ELF core of QEMU brings its registers, one of kdump its symbols', () => {
  const qemu = file('qemu', elfCore([{ paddr: 0, data: x86Image() }], qemuNote(0x8005_0033n, 0x1000n, 0xa0n)));
  assert.deepEqual(rows('--memory', qemu), ROWS);
  const two = Buffer.concat([qemuNote(0x8005_0033n, 0xf000n, 0xa0n), qemuNote(0x8005_0033n, 0x1000n, 0xa0n)]);
  const cpus = file('cpus', elfCore([{ paddr: 0, data: x86Image() }], two));
  assert.deepEqual(rows('--memory', cpus), []);
  assert.deepEqual(rows('--memory', cpus, '--cpu', '1'), ROWS);
  assert.match(cli('dump', '--memory', cpus, '--cpu', '2').err, /has no CPU 2: it has 2, counted from 0/);
  // The kernel's text is there twice, as kdump has it.
  const info = vmcoreinfo('OSRELEASE=6.1\nSYMBOL(init_top_pgt)=ffffffff80001000\nNUMBER(phys_base)=0\n');
  const image = x86Image();
  const kdump = file(
    'kdump',
    elfCore(
      [
        { paddr: 0x1000, data: image.subarray(0x1000, 0x8000) },
        { paddr: 0, data: image, memSize: image.length + 8192 },
      ],
      info,
    ),
  );
  assert.deepEqual(rows('--memory', kdump), ROWS);
});

test('a core of an arm64 kernel’s kdump says where the kernel’s tables are', () => {
  const info = vmcoreinfo(
    'PAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffff800009001000\nNUMBER(kimage_voffset)=0xffff7fffc9000000\nNUMBER(TCR_EL1_T1SZ)=0x19\n',
  );
  const maker = new ImageMaker(4).entry(1, 511, 0x4000_2003n).entry(2, 511, 0x4000_0701n);
  const path = file('arm-kdump', elfCore([{ paddr: 0x4000_0000, data: maker.bytes }], info, 183));
  assert.deepEqual(rows('--memory', path), [
    '0xffffffffffe00000 0x0000000040000000     2M rwxu, user --x  L2 descriptor AF',
  ]);
  const without = file(
    'arm-core',
    elfCore([{ paddr: 0x4000_0000, data: maker.bytes }], vmcoreinfo('PAGESIZE=4096\n'), 183),
  );
  assert.match(cli('dump', '--memory', without).err, /keeps no translation registers: give ttbr0 or ttbr1 with tcr/);
});

test('second-stage tables alone, and under the guest’s', () => {
  // EPT at frame 1 maps guest frames 0 … 3 to host frames 4 … 7; the guest's tables are at guest frames 0 … 3.
  const maker = new ImageMaker(12).entry(1, 0, 0x2007n).entry(2, 0, 0x3007n).entry(3, 0, 0xa007n);
  for (let gfn = 0; gfn < 4; gfn++) maker.entry(10, gfn, BigInt(((gfn + 4) << 12) | 0x37));
  maker.entry(10, 5, 0xb032n);
  maker.entry(4, 0, 0x1067n).entry(5, 0, 0x2067n).entry(6, 0, 0x3067n).entry(7, 1, 0x2067n).entry(7, 2, 0x4067n);
  const path = file('nested', maker.bytes);
  const ept = ['--memory', path, '--ept', '0x101e'];
  assert.equal(rows(...ept).length, 5);
  assert.match(rows(...ept)[4]!, /malformed/);
  assert.deepEqual(rows(...ept, '--cr3', '0'), [
    '0x0000000000001000 0x0000000000002000     4K rwxu  PTE A D',
    '0x0000000000002000 0x0000000000004000     4K rwxu  PTE A D',
  ]);
  const walk = cli('walk', '0x1008', ...ept, '--cr3', '0');
  assert.equal(walk.status, 0, walk.out);
  assert.match(walk.out, /gva 0x1008 is gpa 0x2008 \(4K page, rwxu\) and hpa 0x6008 \(4K page\)/);
  assert.match(
    cli('walk', '0x2008', ...ept, '--cr3', '0').out,
    /EPT violation, exit qualification 0x181: EPT level-1 entry 4 is not present/,
  );
  assert.match(
    cli('walk', '0x5000', ...ept).out,
    /EPT misconfiguration: EPT level-1 entry 5 is malformed: writable but not readable/,
  );
});

test('32-bit and PAE images', () => {
  const legacy = new ImageMaker(8).entry32(1, 1, 0x2067).entry32(1, 768, 0x0040_01e3).entry32(2, 5, 0x7065).bytes;
  assert.deepEqual(rows('--memory', file('legacy', legacy), '--cr3', '0x1000', '--paging', '32-bit'), [
    '0x0000000000405000 0x0000000000007000     4K r-xu  PTE A D',
    '0x00000000c0000000 0x0000000000400000     4M rwxs  PDE A D G',
  ]);
  // PDPTEs at 0x1020.
  const pae = new ImageMaker(8)
    .entry(1, 7, 0x2001n)
    .entry(2, 0, 0x3067n)
    .entry(3, 1, (1n << 63n) | 0x7063n).bytes;
  assert.deepEqual(rows('--memory', file('pae', pae), '--cr3', '0x1020', '--paging', 'pae'), [
    '0x00000000c0001000 0x0000000000007000     4K rw-s  PTE A D',
  ]);
  assert.match(
    cli('walk', '0x1c0001000', '--memory', file('pae', pae), '--cr3', '0x1020', '--paging', 'pae').out,
    /beyond 4G, which no address reaches outside of long mode/,
  );
  // QEMU's own processor sets A in PDPTEs in memory; other processors do not read them in a walk.
  const marked = new ImageMaker(8).entry(1, 7, 0x2021n).entry(2, 0, 0x3067n).entry(3, 1, 0x7063n).bytes;
  const args = ['--memory', file('marked', marked), '--cr3', '0x1020', '--paging', 'pae'];
  assert.deepEqual(rows(...args), ['0x00000000c0001000 0x0000000000007000     4K rwxs  PTE A D']);
  assert.match(
    cli('walk', '0xc0001000', ...args).out,
    /PDPTE 3 [^\n]* 0x2021 +rwxu table at 0x2000, reserved bit 5 set, which only a load of CR3 refuses\b.*is gpa 0x7000/s,
  );
});

test('tables that contain themselves or leave memory are passed over, once each, and said', () => {
  const maker = new ImageMaker(16);
  x86Image().copy(maker.bytes);
  const path = file('hostile', maker.entry(1, 100, 0x1067n).entry(2, 7, 0x7fff_ffff_f067n).entry(3, 9, 0x2067n).bytes);
  const { status, out, err } = cli('dump', '--memory', path, ...CR3);
  assert.equal(status, 0);
  assert.deepEqual(out.trimEnd().split('\n'), ROWS);
  assert.equal(
    err,
    [
      'kvm-mmu: passed over: the level-2 table at 0x3000 has an entry that leads back to the table at 0x2000 on its own path',
      'kvm-mmu: passed over: PDPTE 7 of the level-3 table at 0x2000 points to a table at 0x7ffffffff000, where there is no memory',
      'kvm-mmu: passed over: the level-4 table at 0x1000 has an entry that leads back to the table at 0x1000 on its own path',
      '',
    ].join('\n'),
  );
  assert.match(
    cli('walk', '0x1c0000000', '--memory', path, ...CR3).out,
    /the level-2 table lies at gpa 0x7ffffffff000, where there is no memory/,
  );
});

test('images and cores that are none are named, and so is what is wrong with them', () => {
  const core = elfCore([{ paddr: 0, data: x86Image() }], qemuNote(0x8005_0033n, 0x1000n, 0xa0n));
  const patched = (at: number, value: number, size: 1 | 2 | 4 = 1): Buffer => {
    const copy = Buffer.from(core);
    copy.writeUIntLE(value, at, size);
    return copy;
  };
  for (const [name, bytes, words] of [
    ['empty', Buffer.alloc(0), /empty is empty/],
    ['tiny', Buffer.alloc(100), /has 100 bytes: less than a page, and no ELF core either/],
    [
      'truncated',
      core.subarray(0, 9000),
      /segment 1 \(0x10000 bytes at offset 0x.*\) goes beyond the end of the file, which has 9000 bytes: it is truncated/,
    ],
    ['headers', core.subarray(0, 100), /2 program headers at offset 0x40 go beyond the end of the file/],
    ['short', core.subarray(0, 20), /it has 20 bytes, less than an ELF header/],
    ['exec', patched(16, 2, 2), /its type is 2, not 4 \(core\)/],
    ['mips', patched(18, 8, 2), /its machine 8 is not x86, arm64 or RISC-V/],
    ['big', patched(5, 2), /it is big-endian/],
    ['class', patched(4, 7), /EI_CLASS is 7/],
    ['notes', patched(64 + 112, 0xffffffff, 4), /the note at offset 0xb0 goes beyond its segment/],
    [
      'kdump-compressed',
      Buffer.concat([Buffer.from('KDUMP   '), Buffer.alloc(8192)]),
      /is a compressed kdump file; `makedumpfile/,
    ],
    ['qcow', Buffer.concat([Buffer.from('QFI\xfb', 'latin1'), Buffer.alloc(8192)]), /is a qcow2 disk/],
    ['lime', Buffer.concat([Buffer.from('EMiL'), Buffer.alloc(8192)]), /is a LiME image/],
  ] as const) {
    const { status, err } = cli('dump', '--memory', file(name, bytes), ...CR3);
    assert.equal(status, 2, `${name}: ${err}`);
    assert.match(err, words);
    assert.ok(!err.includes('\n    at '), `${name}: a stack trace: ${err}`);
  }
  assert.match(cli('dump', '--memory', folder, ...CR3).err, /is not a file/);
  assert.match(cli('dump', '--memory', join(folder, 'nowhere'), ...CR3).err, /cannot read .*nowhere/);
  // An image whose last page is not whole is read, with zeroes behind.
  assert.deepEqual(rows('--memory', file('odd', x86Image().subarray(0, 0xa004)), ...CR3), ROWS);
});

test('registers and options that make no sense are named', () => {
  const bad = (...args: string[]): string => {
    const { status, err } = cli('dump', ...args);
    assert.equal(status, 2, `${args.join(' ')}: ${err}`);
    return err;
  };
  const image = ['--memory', raw];
  assert.match(bad(...CR3), /--memory IMAGE is missing/);
  assert.match(bad(...image), /does not say where page tables begin: give cr3/);
  assert.match(
    bad(...image, '--cr3', '0x7000000'),
    /CR3 0x7000000: the root table lies at 0x7000000, where .* has no memory/,
  );
  assert.match(bad(...image, '--cr3', 'kernel'), /--cr3 must be a number, such as 0x1000, not kernel/);
  assert.match(
    bad(...image, ...CR3, '--paging', '6-level'),
    /--paging must be 32-bit, pae, 4-level, 5-level, not 6-level/,
  );
  assert.match(bad(...image, '--cr3', '0x100001000', '--paging', 'pae'), /cr3 0x100001000 has more than the 32 bits/);
  assert.match(bad(...image, ...CR3, '--satp', '0'), /registers of x86 and of riscv are given: cr3, satp/);
  assert.match(bad(...image, '--ept', '0x1006'), /EPTP 0x1006 says a walk of 1 levels/);
  assert.match(bad(...image, '--ept', '0x1000', '--npt', '0x1000'), /ept and npt are given/);
  assert.match(bad(...image, '--ttbr0', '0x1000'), /mean nothing without TCR_EL1/);
  assert.match(bad(...image, '--ttbr0', '0x1000', '--tcr', '0xc010'), /TCR_EL1 0xc010: TG0 3 is reserved/);
  assert.match(bad(...image, '--ttbr0', '0x1000', '--tcr', '0x3f'), /T0SZ is 63; with 4K granules it is 16 … 48/);
  assert.match(
    bad(...image, '--vttbr', '0x1000', '--vtcr', '0x10'),
    /48 bits of input address \(T0SZ\) cannot begin at level 2/,
  );
  assert.match(bad(...image, '--satp', '0x7000000000000001'), /mode 7 is not Sv39 \(8\), Sv48 \(9\) or Sv57 \(10\)/);
  assert.match(bad(...image, '--hgatp', '0x8000000000000001'), /the root of a G-stage is aligned to 16K/);
  assert.match(bad(...image, ...CR3, '--range', '5..5'), /--range 5\.\.5 is empty/);
  assert.match(bad(...image, ...CR3, '--perm', 'q'), /--perm must be letters of r, w, x, u \(user\) and s/);
  assert.match(bad(...image, ...CR3, '--map', '0x1000'), /--map must be GPA@OFFSET or GPA\+SIZE@OFFSET, not 0x1000/);
  assert.match(bad(...image, ...CR3, '--map', '0x123@0'), /0x123 is not a multiple of 4K/);
  assert.match(bad(...image, ...CR3, '--map', '0+1M@0'), /goes beyond the end of the file, which has 65536 bytes/);
  assert.match(bad(...image, ...CR3, '--format', 'xml'), /--format must be text, json or qemu, not xml/);
  assert.match(bad(...image, '--satp', '0x8000000000000001', '--format', 'qemu'), /is the layout of x86 machines/);
  assert.match(cli('walk', '--memory', raw, ...CR3).err, /walk takes one address/);
});

test('a sparse image of 1 TiB opens at once', () => {
  const path = join(folder, 'sparse');
  const handle = openSync(path, 'w');
  ftruncateSync(handle, 2 ** 40);
  // Tables at the far end: 1 TiB − 64K.
  const at = 2 ** 40 - 65536;
  const maker = new ImageMaker(4)
    .entry(0, 0, BigInt(at + 0x1067))
    .entry(1, 0, BigInt(at + 0x2067))
    .entry(2, 0, 0x83n);
  writeSync(handle, maker.bytes, 0, maker.bytes.length, at);
  closeSync(handle);
  assert.deepEqual(rows('--memory', path, '--cr3', String(at)), [
    '0x0000000000000000 0x0000000000000000     2M rwxs  PDE',
  ]);
});
