import type { LegacyMismatch } from './legacy.ts';

/** In what KVM differs from the manuals, by its function; all else is a mistake. */
const ROWS: readonly { readonly name: string; readonly why: string; holds(of: LegacyMismatch): boolean }[] = [
  {
    name: 'walk_addr_generic',
    why: 'with EFER.NXE it tells of fetches without PAE too, where the manual wants both (SDM vol. 3, 4.7)',
    holds: ({ case: { mode, nxe, smep, kind }, engine, kvm }) =>
      mode === '32-bit' && nxe && !smep && kind === 'fetch' && kvm.error === engine.error + 0x10 && isElse(engine, kvm),
  },
];

const isElse = (a: LegacyMismatch['engine'], b: LegacyMismatch['kvm']): boolean =>
  a.kind === b.kind && a.cr2 === b.cr2 && a.entries.every((entry, at) => entry === b.entries[at]);

/** The function of KVM's that makes a difference, and why; undefined: nothing is known that does. */
export function legacyRow(of: LegacyMismatch): { readonly name: string; readonly why: string } | undefined {
  return ROWS.find(({ holds }) => holds(of));
}
