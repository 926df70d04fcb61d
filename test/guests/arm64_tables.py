#!/usr/bin/env python3
"""Lists what arm64 translation tables in a saved memory map, one line per leaf.

Written from the rules of the Arm Architecture Reference Manual (VMSAv8-64) alone, so that another lister can be
compared with it; it is meant to be read, not to be fast. Python's standard library only.

  arm64_tables.py IMAGE --base ADDRESS --tcr X [--ttbr0 X] [--ttbr1 X]      EL1&0 (or EL2&0 of a VHE host)
  arm64_tables.py IMAGE --base ADDRESS --el2 --tcr TCR_EL2 --ttbr0 TTBR0_EL2       EL2 without VHE
  arm64_tables.py IMAGE --base ADDRESS --stage2 --vtcr VTCR_EL2 --vttbr VTTBR_EL2
  arm64_tables.py --self-test

Stage 1:  VA PA SIZE LEVEL el1=rwx el0=rwx af=0/1 attr=AttrIndx     (--el2: el2=rwx in place of el1= and el0=)
Stage 2:  IPA PA SIZE LEVEL s2=rw xn=XN[1:0] af=0/1 attr=MemAttr
--contiguous appends contig=0/1 to each line; the number of leaves that have the bit is always told on stderr.

A leaf is listed when the walk that reaches it would end without a translation or address size fault. The Access flag
does not matter for that; neither do PAN, WXN, E0PD, NFD and the hardware's updates of dirty state. Leaves may map
addresses outside of the image (devices do). Tables that lie outside of it cannot be read: they are reported on stderr
and skipped, as is every descriptor with an address beyond the output size and every block where none may be.
"""

import argparse
import mmap
import struct
import sys

PAGE_SHIFT = {"4K": 12, "16K": 14, "64K": 16}
TG0 = {0b00: "4K", 0b01: "64K", 0b10: "16K"}  # also VTCR_EL2.TG0 and TCR_EL2.TG0
TG1 = {0b01: "16K", 0b10: "4K", 0b11: "64K"}
OUTPUT_BITS = (32, 36, 40, 42, 44, 48, 52, 52)  # by IPS or PS; 0b111 is reserved and behaves like 0b110


class Unusable(Exception):
    """The registers describe no walk that the architecture defines."""


def bits(value, high, low):
    return (value >> low) & ((1 << (high - low + 1)) - 1)


class Image:
    def __init__(self, data, base):
        self.data = data
        self.base = base

    def read(self, address, size):
        """The bytes at an address; None when not all of them are in the image."""
        offset = address - self.base
        if offset < 0 or offset + size > len(self.data):
            return None
        return self.data[offset : offset + size]


class Regime:
    """How one table tree is read: everything that comes from the registers."""

    def __init__(self, name, granule, ttbr, input_bits, ps, ds, pa_bits, stage2=False, el2=False, hpd=False,
                 start=None, upper=False):
        self.name = name
        self.stage2 = stage2
        self.el2 = el2
        self.hpd = hpd
        self.granule = granule
        self.shift = PAGE_SHIFT[granule]
        self.stride = self.shift - 3  # bits of the address that one full table resolves
        self.input_bits = input_bits
        # Without the 52-bit descriptors (DS, or the 64K granule) nothing above bit 47 can be named.
        self.output_bits = min(OUTPUT_BITS[ps], pa_bits)
        if granule != "64K" and not ds:
            self.output_bits = min(self.output_bits, 48)
        self.ds = ds and granule != "64K"
        self.pa_bits = pa_bits
        self.first_address = (1 << 64) - (1 << input_bits) if upper else 0

        if start is None:
            levels = -(-(input_bits - self.shift) // self.stride)
            start = 4 - levels
        self.start = start
        self.start_index_bits = input_bits - self.level_shift(start)
        most = self.stride + (4 if stage2 else 0)  # stage 2: up to 16 tables of the first level lie side by side
        if not 1 <= self.start_index_bits <= most:
            raise Unusable(f"{name}: {input_bits} address bits do not fit a walk from level {start}")
        table_size = 8 << self.start_index_bits
        if self.output_bits > 48:
            # The register holds address bits 51:48 in its bits 5:2, so the table is aligned to 64 bytes at least.
            address = bits(ttbr, 47, 6) << 6 | bits(ttbr, 5, 2) << 48
            table_size_for_alignment = max(table_size, 64)
        else:
            address = bits(ttbr, 47, 1) << 1
            table_size_for_alignment = table_size
        self.root = address & ~(table_size_for_alignment - 1)

    def level_shift(self, level):
        """The lowest bit of the address that indexes a table of this level."""
        return self.shift + self.stride * (3 - level)

    def block_allowed(self, level):
        if self.granule == "4K":
            return level in (1, 2) or (level == 0 and self.ds)
        if self.granule == "16K":
            return level == 2 or (level == 1 and self.ds)
        return level == 2 or (level == 1 and self.pa_bits == 52)

    def address_in(self, descriptor, low):
        """The output or next-table address in a descriptor, whose lowest address bit is `low`."""
        if self.ds:
            return bits(descriptor, 49, low) << low | bits(descriptor, 9, 8) << 50
        address = bits(descriptor, 47, low) << low
        if self.granule == "64K" and self.pa_bits == 52:
            address |= bits(descriptor, 15, 12) << 48
        return address


class Lister:
    def __init__(self, image, regime, report):
        self.image = image
        self.regime = regime
        self.report = report

    def leaves(self):
        r = self.regime
        if r.root >> r.output_bits:
            self.report(f"{r.name}: the first table, 0x{r.root:x}, is beyond {r.output_bits} bits")
            return
        # Nothing is denied above the first table.
        limits = {"read_only": 0, "no_el0": 0, "uxn": 0, "pxn": 0}
        yield from self.table(r.root, r.start, r.start_index_bits, r.first_address, limits)

    def table(self, address, level, index_bits, virtual, limits):
        r = self.regime
        count = 1 << index_bits
        content = self.image.read(address, 8 * count)
        if content is None:
            self.report(f"{r.name}: level {level} table 0x{address:x} for 0x{virtual:016x} is outside of the image")
            return
        if not any(content):
            return
        shift = r.level_shift(level)
        for index, descriptor in enumerate(struct.unpack(f"<{count}Q", content)):
            if not descriptor & 1:
                continue
            va = virtual + (index << shift)
            is_bit1 = bits(descriptor, 1, 1)
            where = f"{r.name}: level {level} descriptor 0x{descriptor:016x} for 0x{va:016x}"
            if level == 3 and not is_bit1:
                self.report(f"{where} is reserved")
            elif level < 3 and is_bit1:
                following = r.address_in(descriptor, r.shift)
                if following >> r.output_bits:
                    self.report(f"{where} names a table beyond {r.output_bits} bits")
                    continue
                yield from self.table(following, level + 1, r.stride, va, self.limits_below(descriptor, limits))
            elif level < 3 and not r.block_allowed(level):
                self.report(f"{where} is a block, which this level does not have")
            else:
                output = r.address_in(descriptor, shift)
                if output >> r.output_bits:
                    self.report(f"{where} maps an address beyond {r.output_bits} bits")
                    continue
                yield va, output, 1 << shift, level, descriptor, limits

    def limits_below(self, descriptor, limits):
        r = self.regime
        if r.stage2 or r.hpd:
            return limits
        here = {
            "read_only": bits(descriptor, 62, 62),  # APTable[1]
            "no_el0": bits(descriptor, 61, 61),  # APTable[0]
            "uxn": bits(descriptor, 60, 60),  # UXNTable, XNTable at EL2
            "pxn": bits(descriptor, 59, 59),  # PXNTable
        }
        return {key: limits[key] | here[key] for key in here}


def rwx(read, write, execute):
    return ("r" if read else "-") + ("w" if write else "-") + ("x" if execute else "-")


def line(regime, leaf, contiguous):
    va, output, size, level, descriptor, limits = leaf
    start = f"{va:016x} {output:012x} {size:d} {level:d}"
    af = bits(descriptor, 10, 10)
    if regime.stage2:
        read, write = bits(descriptor, 6, 6), bits(descriptor, 7, 7)
        s2 = ("r" if read else "-") + ("w" if write else "-")
        text = f"{start} s2={s2} xn={bits(descriptor, 54, 53)} af={af} attr={bits(descriptor, 5, 2)}"
    else:
        read_only = bits(descriptor, 7, 7) | limits["read_only"]
        uxn = bits(descriptor, 54, 54) | limits["uxn"]
        attr = bits(descriptor, 4, 2)
        if regime.el2:
            text = f"{start} el2={rwx(1, not read_only, not uxn)} af={af} attr={attr}"
        else:
            el0 = bits(descriptor, 6, 6) and not limits["no_el0"]
            pxn = bits(descriptor, 53, 53) | limits["pxn"]
            el0_writes = el0 and not read_only
            for_el1 = rwx(1, not read_only, not pxn and not el0_writes)
            for_el0 = rwx(el0, el0_writes, not uxn)
            text = f"{start} el1={for_el1} el0={for_el0} af={af} attr={attr}"
    return text + (f" contig={bits(descriptor, 52, 52)}" if contiguous else "")


def check_size(name, granule, txsz, ds):
    least = 12 if granule == "64K" or ds else 16
    most = 47 if granule == "64K" else 48
    if not least <= txsz <= most:
        raise Unusable(f"{name}: a TxSZ of {txsz} is outside of {least}..{most} for the {granule} granule")


def granule_of(name, table, encoding):
    if encoding not in table:
        raise Unusable(f"{name}: granule encoding {encoding:02b} is reserved")
    return table[encoding]


def stage1_regimes(tcr, ttbr0, ttbr1, pa_bits, report):
    ds, ps = bool(bits(tcr, 59, 59)), bits(tcr, 34, 32)
    halves = (
        ("TTBR0", ttbr0, bits(tcr, 5, 0), bits(tcr, 7, 7), TG0, bits(tcr, 15, 14), bits(tcr, 41, 41), False),
        ("TTBR1", ttbr1, bits(tcr, 21, 16), bits(tcr, 23, 23), TG1, bits(tcr, 31, 30), bits(tcr, 42, 42), True),
    )
    for name, ttbr, txsz, epd, encodings, tg, hpd, upper in halves:
        if ttbr is None:
            continue
        if epd:
            report(f"{name}: its walks are disabled (TCR.EPD{int(upper)})")
            continue
        granule = granule_of(name, encodings, tg)
        check_size(name, granule, txsz, ds)
        yield Regime(name, granule, ttbr, 64 - txsz, ps, ds, pa_bits, hpd=bool(hpd), upper=upper)


def el2_regime(tcr, ttbr0, pa_bits):
    name = "TTBR0_EL2"
    granule = granule_of(name, TG0, bits(tcr, 15, 14))
    ds, t0sz = bool(bits(tcr, 32, 32)), bits(tcr, 5, 0)
    check_size(name, granule, t0sz, ds)
    return Regime(name, granule, ttbr0, 64 - t0sz, bits(tcr, 18, 16), ds, pa_bits, el2=True,
                  hpd=bool(bits(tcr, 24, 24)))


def stage2_regime(vtcr, vttbr, pa_bits):
    name = "VTTBR_EL2"
    granule = granule_of(name, TG0, bits(vtcr, 15, 14))
    ds, t0sz = bool(bits(vtcr, 32, 32)), bits(vtcr, 5, 0)
    check_size(name, granule, t0sz, ds)
    sl0, sl2 = bits(vtcr, 7, 6), bits(vtcr, 33, 33)
    if granule == "4K":
        start = {0b00: 2, 0b01: 1, 0b10: 0, 0b11: 3}[sl0]
        if ds and sl2:
            if sl0 != 0b00:
                raise Unusable(f"{name}: SL2=1 with SL0={sl0:02b} is reserved")
            start = -1
    else:
        start = {0b00: 3, 0b01: 2, 0b10: 1, 0b11: 0}[sl0]
        if sl0 == 0b11 and not (granule == "16K" and ds):
            raise Unusable(f"{name}: SL0=11 is reserved for the {granule} granule without LPA2")
    return Regime(name, granule, vttbr, 64 - t0sz, bits(vtcr, 18, 16), ds, pa_bits, stage2=True, start=start)


# ---------------------------------------------------------------------------------------------------------- self-test


class Sparse:
    """An image for tests: a few 64-bit words in an otherwise empty memory of `size` bytes at `base`."""

    def __init__(self, words, size=1 << 20, base=0):
        self.data = bytearray(size)
        self.base = base
        for address, value in words.items():
            struct.pack_into("<Q", self.data, address - base, value)

    def image(self):
        return Image(bytes(self.data), self.base)


def self_test():
    """Tables computed by hand from the manual's figures of descriptor formats: {address: descriptor}."""
    failures = 0

    def case(title, words, make, expected, expected_reports=(), base=0, contiguous=False):
        nonlocal failures
        reports, lines = [], []
        try:
            regimes = make(reports.append)
            for regime in regimes:
                lister = Lister(Sparse(words, base=base).image(), regime, reports.append)
                lines += [line(regime, leaf, contiguous) for leaf in lister.leaves()]
        except Unusable as problem:
            reports.append(str(problem))
        good = lines == list(expected) and len(reports) == len(expected_reports)
        good = good and all(part in report for part, report in zip(expected_reports, reports))
        print(f"{'ok  ' if good else 'FAIL'} {title}")
        if not good:
            failures += 1
            for text in [f"  expected {e}" for e in expected] + [f"  got      {g}" for g in lines]:
                print(text)
            for text in [f"  expected report …{e}" for e in expected_reports] + [f"  report   {r}" for r in reports]:
                print(text)

    def stage1(tcr, ttbr0=None, ttbr1=None, pa_bits=52):
        return lambda report: stage1_regimes(tcr, ttbr0, ttbr1, pa_bits, report)

    def stage2(vtcr, vttbr, pa_bits=52):
        return lambda report: [stage2_regime(vtcr, vttbr, pa_bits)]

    ips48 = 5 << 32
    ips52 = 6 << 32

    # 4K, 48 bits (T0SZ=16): level 0 at 0x1000 -> 1 at 0x2000 -> 2 at 0x3000 -> 3 at 0x4000.
    case(
        "4K, 48 bits, page, 2M and 1G blocks, permissions",
        {
            0x1000 + 8 * 1: 0x2003,  # VA 0x80_0000_0000
            0x2000 + 8 * 2: 0x3003,  # + 0x8000_0000
            0x2000 + 8 * 3: 0x0060_0000_4000_0401,  # + 0xC000_0000: 1G block, UXN PXN AF
            0x3000 + 8 * 4: 0x4003,  # + 0x80_0000
            0x3000 + 8 * 5: 0x0000_0000_0060_00C5,  # + 0xA0_0000: 2M block, EL0 read-only, AF=0, attr 1
            0x4000 + 8 * 6: 0x0000_0000_1234_5443,  # + 0x6000: EL0 read-write
            0x4000 + 8 * 7: 0x0040_0000_1234_648F,  # + 0x7000: EL1 read-only, UXN, attr 3
            0x4000 + 8 * 8: 0x0020_0000_1234_7401,  # + 0x8000: bit 1 clear at level 3
            0x4000 + 8 * 9: 0x0000_0000_1234_8000,  # + 0x9000: invalid
        },
        stage1(16 | ips48, ttbr0=0x0007_0000_0000_1001),  # with an ASID and CnP
        [
            "0000008080806000 000012345000 4096 3 el1=rw- el0=rwx af=1 attr=0",
            "0000008080807000 000012346000 4096 3 el1=r-x el0=--- af=1 attr=3",
            "0000008080a00000 000000600000 2097152 2 el1=r-x el0=r-x af=0 attr=1",
            "00000080c0000000 000040000000 1073741824 1 el1=rw- el0=--- af=1 attr=0",
        ],
        ["is reserved"],
    )
    case(
        "4K, 39 bits in the upper half: level 1 first, addresses sign-extended, TG1=10",
        {0x1000 + 8 * 511: 0x2003, 0x2000 + 8 * 511: 0x0040_0000_0080_0405 | 1 << 52},
        stage1(2 << 30 | 25 << 16 | 25 | ips48, ttbr1=0x1000),
        ["ffffffffffe00000 000000800000 2097152 2 el1=rwx el0=--- af=1 attr=1 contig=1"],
        contiguous=True,
    )
    # 4K, 42 bits (T0SZ=22): level 0 with 3 index bits, so 64 bytes of table, aligned to 64.
    case(
        "4K, 42 bits: a first table of 8 entries",
        {0x1040 + 8 * 7: 0x2003, 0x2000: 0x0000_0000_C000_0401, 0x1080: 0x3003},
        stage1(22 | ips48, ttbr0=0x1041),
        ["0000038000000000 0000c0000000 1073741824 1 el1=rwx el0=--x af=1 attr=0"],
    )
    case(
        "4K: a level 0 block is none without DS; a table outside of the image",
        {0x1000: 0x0000_0000_0000_0401, 0x1008: 0x0000_0000_4000_0003},
        stage1(16 | ips48, ttbr0=0x1000),
        [],
        ["is a block, which this level does not have", "table 0x40000000 for 0x0000008000000000 is outside"],
    )
    case(
        "4K: APTable, UXNTable and PXNTable bind everything below",
        {
            0x1000 + 8 * 0: 0x2003 | 1 << 61,  # APTable[0]: nothing for EL0
            0x1000 + 8 * 1: 0x2003 | 1 << 62,  # APTable[1]: read-only
            0x1000 + 8 * 2: 0x2003 | 1 << 60,  # UXNTable
            0x1000 + 8 * 3: 0x2003 | 1 << 59,  # PXNTable
            0x2000: 0x0000_0000_0000_0441,  # 2M block, EL0 read-write, executable
        },
        stage1(25 | ips48, ttbr0=0x1000),
        [
            "0000000000000000 000000000000 2097152 2 el1=rwx el0=--x af=1 attr=0",
            "0000000040000000 000000000000 2097152 2 el1=r-x el0=r-x af=1 attr=0",
            "0000000080000000 000000000000 2097152 2 el1=rw- el0=rw- af=1 attr=0",
            "00000000c0000000 000000000000 2097152 2 el1=rw- el0=rwx af=1 attr=0",
        ],
    )
    case(
        "4K: the same with TCR.HPD0=1 does not bind",
        {0x1000: 0x2003 | 0xF << 59, 0x2000: 0x0000_0000_0000_0441},
        stage1(25 | ips48 | 1 << 41, ttbr0=0x1000),
        ["0000000000000000 000000000000 2097152 2 el1=rw- el0=rwx af=1 attr=0"],
    )
    # 4K, LPA2, 52 bits (T0SZ=12): level -1 has 4 index bits; TTBR bits 5:2 are address bits 51:48.
    case(
        "4K, LPA2, 52 bits: level -1, output address in bits 49:12 and 9:8, level 0 block",
        {
            0x1000 + 8 * 15: 0x2003,  # VA 0xF_0000_0000_0000
            0x2000 + 8 * 1: 0x3003,  # + 0x80_0000_0000
            0x2000 + 8 * 2: 0x0001_0080_0000_0401 | 3 << 8,  # + 0x100_0000_0000: 512G block
            0x3000: 0x4003,
            0x4000: 0x5003,
            0x5000: 0x0003_0000_0000_7403 | 2 << 8,
        },
        stage1(12 | ips52 | 1 << 59, ttbr0=0x1000),
        [
            "000f008000000000 b000000007000 4096 3 el1=rwx el0=--x af=1 attr=0",
            "000f010000000000 d008000000000 549755813888 0 el1=rwx el0=--x af=1 attr=0",
        ],
    )
    case(
        "4K, LPA2: a first table above bit 47 is outside of the image; bits 5:2 give 51:48",
        {},
        stage1(12 | ips52 | 1 << 59, ttbr0=0x1000 | 0b1001 << 2),
        [],
        ["level -1 table 0x9000000001000"],
    )
    case(
        "4K: an address beyond IPS (0b010, 40 bits) is no mapping",
        {0x1000: 0x0000_0100_0000_0401, 0x1008: 0x0000_0080_0000_0401, 0x1010: 0x0000_0100_0000_0003},
        stage1(25 | 2 << 32, ttbr0=0x1000),
        ["0000000040000000 008000000000 1073741824 1 el1=rwx el0=--x af=1 attr=0"],
        ["maps an address beyond 40", "names a table beyond 40"],
    )
    # 16K, 47 bits (T0SZ=17, TG0=10): level 1 has 11 index bits (46:36), level 2 35:25, level 3 24:14.
    case(
        "16K, 47 bits: level 1 first, page and 32M block",
        {
            0x4000 + 8 * 2: 0x8003,  # VA 0x20_0000_0000
            0x8000 + 8 * 3: 0x0000_0000_0800_0401,  # + 0x600_0000: 32M block
            0x8000 + 8 * 4: 0xC003,  # + 0x800_0000
            0xC000 + 8 * 5: 0x0000_0000_0001_4403,  # + 0x1_4000
            0x4000 + 8 * 3: 0x0000_0000_0000_0401,  # no level 1 blocks without DS
        },
        stage1(17 | 2 << 14 | ips48, ttbr0=0x4000),
        [
            "0000002006000000 000008000000 33554432 2 el1=rwx el0=--x af=1 attr=0",
            "0000002008014000 000000014000 16384 3 el1=rwx el0=--x af=1 attr=0",
        ],
        ["is a block, which this level does not have"],
    )
    case(
        "16K, 48 bits, upper half (TG1=01): level 0 with two entries",
        {0x40010 + 8: 0x4003, 0x4000 + 8 * 2047: 0x8003, 0x8000 + 8 * 2047: 0x0000_0000_0200_0401},
        stage1(1 << 30 | 16 << 16 | ips48, ttbr1=0x40010),
        ["fffffffffe000000 000002000000 33554432 2 el1=rwx el0=--x af=1 attr=0"],
    )
    case(
        "16K, LPA2, 52 bits: level 0 of 5 index bits, 64G block at level 1",
        {0x4000 + 8 * 31: 0x8003, 0x8000 + 8 * 1: 0x0002_0010_0000_0401 | 1 << 8},
        stage1(12 | 2 << 14 | ips52 | 1 << 59, ttbr0=0x4000),
        ["000f801000000000 6001000000000 68719476736 1 el1=rwx el0=--x af=1 attr=0"],
    )
    # 64K, 48 bits (T0SZ=16, TG0=01): level 1 has 6 index bits (47:42), level 2 13 (41:29), level 3 13 (28:16).
    case(
        "64K, 48 bits: page and 512M block",
        {
            0x10000 + 8 * 1: 0x20003,  # VA 0x400_0000_0000
            0x20000 + 8 * 2: 0x30003,  # + 0x4000_0000
            0x20000 + 8 * 3: 0x0000_0000_2000_0401,  # + 0x6000_0000
            0x30000 + 8 * 4: 0x0000_0000_0005_0403,  # + 0x4_0000
        },
        stage1(16 | 1 << 14 | ips48, ttbr0=0x10000),
        [
            "0000040040040000 000000050000 65536 3 el1=rwx el0=--x af=1 attr=0",
            "0000040060000000 000020000000 536870912 2 el1=rwx el0=--x af=1 attr=0",
        ],
    )
    case(
        "64K, 52 bits, upper half (TG1=11): output address bits 51:48 in 15:12, 4T block at level 1",
        {
            0x10000 + 8 * 1023: 0x20003,
            0x10000 + 8 * 1022: 0x0000_0400_0000_0401 | 0xA << 12,
            0x20000 + 8 * 8191: 0x30003,
            0x30000 + 8 * 8191: 0x0000_0000_0005_0403 | 0x3 << 12,
        },
        stage1(3 << 30 | 12 << 16 | ips52, ttbr1=0x10000),
        [
            "fffff80000000000 a040000000000 4398046511104 1 el1=rwx el0=--x af=1 attr=0",
            "ffffffffffff0000 3000000050000 65536 3 el1=rwx el0=--x af=1 attr=0",
        ],
    )
    case(
        "64K on a processor of 48 address bits: no 4T blocks, bits 15:12 are nothing",
        {0x10000: 0x0000_0400_0000_0401, 0x10008: 0x20003, 0x20000: 0x0000_0000_2000_0401 | 0x3 << 12},
        stage1(16 | 1 << 14 | ips48, ttbr0=0x10000, pa_bits=48),
        ["0000040000000000 000020000000 536870912 2 el1=rwx el0=--x af=1 attr=0"],
        ["is a block, which this level does not have"],
    )
    case("EPD0: no walks", {0x1000: 0x401}, stage1(25 | 1 << 7 | ips48, ttbr0=0x1000), [], ["EPD0"])
    case("TG0=11 is reserved", {}, stage1(25 | 3 << 14 | ips48, ttbr0=0x1000), [], ["granule encoding 11"])
    case("T0SZ=15 without LPA2", {}, stage1(15 | ips48, ttbr0=0x1000), [], ["TxSZ of 15"])
    case(
        "an image that does not start at 0",
        {0x4000_1000: 0x0000_0000_4000_0401},
        stage1(25 | ips48, ttbr0=0x4000_1000),
        ["0000000000000000 000040000000 1073741824 1 el1=rwx el0=--x af=1 attr=0"],
        base=0x4000_0000,
    )
    case(
        "EL2 without VHE: one privilege, XN in bit 54, PS in 18:16",
        {
            0x1000: 0x0000_0000_0000_0441,
            0x1008: 0x0040_0000_0000_04C1,
            0x1010: 0x2003 | 1 << 60 | 1 << 62,
            0x2000: 0x0000_0000_0020_0441,
        },
        lambda report: [el2_regime(25 | 5 << 16, 0x1000, 52)],
        [
            "0000000000000000 000000000000 1073741824 1 el2=rwx af=1 attr=0",
            "0000000040000000 000000000000 1073741824 1 el2=r-- af=1 attr=0",
            "0000000080000000 000000200000 2097152 2 el2=r-- af=1 attr=0",
        ],
    )
    # Stage 2, 4K, 40 bits (T0SZ=24), SL0=01: level 1 first, two tables side by side at 0x2000.
    case(
        "stage 2, 4K, 40 bits: two first tables side by side",
        {
            0x2000 + 8 * 1: 0x4003,
            0x4000 + 8 * 2: 0x0040_0000_0040_07FD,  # 2M: rw, XN=10, MemAttr 15
            0x4000 + 8 * 3: 0x5003,
            0x5000 + 8 * 1: 0x0020_0000_0000_7447,  # page: r, XN=01, MemAttr 1
            0x5000 + 8 * 2: 0x0060_0000_0000_8083,  # page: w, XN=11, AF=0
            0x2000 + 8 * 1023: 0x0000_0000_8000_0401,  # 1G in the second table: none
        },
        stage2(24 | 1 << 6 | 2 << 16, 0x0001_0000_0000_2000),
        [
            "0000000040400000 000000400000 2097152 2 s2=rw xn=2 af=1 attr=15",
            "0000000040601000 000000007000 4096 3 s2=r- xn=1 af=1 attr=1",
            "0000000040602000 000000008000 4096 3 s2=-w xn=3 af=0 attr=0",
            "000000ffc0000000 000080000000 1073741824 1 s2=-- xn=0 af=1 attr=0",
        ],
    )
    case(
        "stage 2: bits of table descriptors deny nothing",
        {0x1000: 0x2003 | 0x1F << 59, 0x2000: 0x0000_0000_0000_04C1},
        stage2(25 | 1 << 6 | 2 << 16, 0x1000),
        ["0000000000000000 000000000000 2097152 2 s2=rw xn=0 af=1 attr=0"],
    )
    # 16 tables of level 2 for 34 bits (T0SZ=30, SL0=00).
    case(
        "stage 2, 4K, 34 bits: sixteen level 2 tables",
        {0x10000 + 8 * 8191: 0x0000_0000_0020_04C1},
        stage2(30 | 2 << 16, 0x10000),
        ["00000003ffe00000 000000200000 2097152 2 s2=rw xn=0 af=1 attr=0"],
    )
    case("stage 2, 4K, 35 bits from level 2", {}, stage2(29 | 2 << 16, 0x10000), [], ["do not fit"])
    case("stage 2, 4K, 30 bits from level 1", {}, stage2(34 | 1 << 6, 0x10000), [], ["do not fit"])
    case(
        "stage 2, 4K, 48 bits: SL0=10, level 0 first",
        {0x1000 + 8 * 511: 0x2003, 0x2000 + 8 * 511: 0x0000_0000_4000_04C1},
        stage2(16 | 2 << 6 | 5 << 16, 0x1000),
        ["0000ffffc0000000 000040000000 1073741824 1 s2=rw xn=0 af=1 attr=0"],
    )
    case(
        "stage 2, 4K, LPA2, 52 bits: SL2=1, level -1 first",
        {0x1000 + 8 * 1: 0x2003, 0x2000: 0x0000_0000_0000_04C1 | 1 << 9},
        stage2(12 | 6 << 16 | 1 << 32 | 1 << 33, 0x1000),
        ["0001000000000000 8000000000000 549755813888 0 s2=rw xn=0 af=1 attr=0"],
    )
    case(
        "stage 2, 16K, 40 bits: SL0=01, level 2 first, 16 tables side by side",
        {0x40000 + 8 * 32767: 0x0000_0000_0200_04C1},
        stage2(24 | 2 << 14 | 1 << 6 | 2 << 16, 0x40000),
        ["000000fffe000000 000002000000 33554432 2 s2=rw xn=0 af=1 attr=0"],
    )
    case(
        "stage 2, 64K, 42 bits: SL0=01, level 2 first; 64K, 30 bits: SL0=00, level 3 in two tables",
        {0x10000 + 8 * 8191: 0x0000_0000_2000_04C1},
        stage2(22 | 1 << 14 | 1 << 6 | 3 << 16, 0x10000),
        ["000003ffe0000000 000020000000 536870912 2 s2=rw xn=0 af=1 attr=0"],
    )
    case(
        "stage 2, 64K, 30 bits: SL0=00, level 3 in two tables",
        {0x20000 + 8 * 8192: 0x0000_0000_0003_04C3},
        stage2(34 | 1 << 14 | 3 << 16, 0x20000),
        ["0000000020000000 000000030000 65536 3 s2=rw xn=0 af=1 attr=0"],
    )
    case("stage 2, 64K: SL0=11 is reserved", {}, stage2(22 | 1 << 14 | 3 << 6, 0x10000), [], ["SL0=11"])
    print("self-test: all good" if not failures else f"self-test: {failures} failed")
    return 1 if failures else 0


# ---------------------------------------------------------------------------------------------------------- arguments


def main():
    number = lambda text: int(text, 0)  # noqa: E731
    parser = argparse.ArgumentParser(description="Lists what arm64 translation tables in a saved memory map.")
    parser.add_argument("image", nargs="?", help="raw memory")
    parser.add_argument("--base", type=number, default=0, help="address of the image's first byte")
    parser.add_argument("--tcr", type=number, help="TCR_EL1 (TCR_EL2 with --el2, or of a VHE host)")
    parser.add_argument("--ttbr0", type=number)
    parser.add_argument("--ttbr1", type=number)
    parser.add_argument("--el2", action="store_true", help="EL2 without VHE: --ttbr0 and --tcr are those of EL2")
    parser.add_argument("--stage2", action="store_true")
    parser.add_argument("--vtcr", type=number)
    parser.add_argument("--vttbr", type=number)
    parser.add_argument("--pa-bits", type=int, default=52, choices=(32, 36, 40, 42, 44, 48, 52),
                        help="physical address bits of the processor (ID_AA64MMFR0_EL1.PARange)")
    parser.add_argument("--contiguous", action="store_true", help="append contig=0/1")
    parser.add_argument("--self-test", action="store_true")
    args = parser.parse_args()
    if args.self_test:
        return self_test()
    if args.image is None:
        parser.error("which image?")

    def report(text):
        print(text, file=sys.stderr)

    with open(args.image, "rb") as file:
        image = Image(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), args.base)
    try:
        if args.stage2:
            if args.vtcr is None or args.vttbr is None:
                parser.error("--stage2 takes --vtcr and --vttbr")
            regimes = [stage2_regime(args.vtcr, args.vttbr, args.pa_bits)]
        elif args.tcr is None or (args.ttbr0 is None and args.ttbr1 is None):
            parser.error("--tcr, and --ttbr0 or --ttbr1 or both")
        elif args.el2:
            if args.ttbr0 is None:
                parser.error("--el2 takes --ttbr0")
            regimes = [el2_regime(args.tcr, args.ttbr0, args.pa_bits)]
        else:
            regimes = list(stage1_regimes(args.tcr, args.ttbr0, args.ttbr1, args.pa_bits, report))
    except Unusable as problem:
        report(str(problem))
        return 2
    for regime in regimes:
        leaves = contiguous = 0
        for leaf in Lister(image, regime, report).leaves():
            leaves += 1
            contiguous += bits(leaf[4], 52, 52)
            print(line(regime, leaf, args.contiguous))
        report(f"{regime.name}: {leaves} leaves, {contiguous} of them with the contiguous bit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
