import type { Stage } from '../../engine/guest/regime.ts';
import type { Row } from './dump.ts';
import { hexFrame } from './hex-frame.ts';

/** Bits 8:1 of an entry from the highest down, as `info tlb` names them. */
const NAMES = 'GPDACTUW';

const FLAGS = Array.from({ length: 512 }, (_, index) => {
  const noExecute = index >= 256 ? 'X' : '-';
  return noExecute + [...NAMES].map((name, at) => ((index >> (7 - at)) & 1 ? name : '-')).join('');
});

/** A row of QEMU's `info tlb` (monitor, x86). */
export function qemuRow({ frame, target, level, lo, hi }: Row, stage: Stage): string {
  const { spec } = stage.tree.format;
  const large = level > 1;
  // A 4K entry has its PAT bit where a large one has PS: QEMU leaves it out.
  const bits = (lo >>> 1) & (large ? 0xff : 0xff & ~0x40);
  const noExecute = (hi & 0x8000_0000) !== 0;
  const flags = FLAGS[bits | (noExecute ? 256 : 0)]!;
  // In PAE paging the address keeps the entry's NX bit, in 32-bit paging 4M pages only their lower 4G.
  const address = spec.name === 'x86-32' ? target % 2 ** 20 : target;
  const digits = hexFrame(address);
  const shown = spec.name === 'pae' && noExecute ? `8${digits.slice(1)}` : digits;
  return `${hexFrame(frame)}: ${shown} ${flags}`;
}
