/** `kvm_mmu_page_role` as today's kernels lay it out (7.1: kvm_host.h): name → lowest bit and width. */
export const ROLE_FIELDS = {
  level: [0, 4],
  has_4_byte_gpte: [4, 1],
  quadrant: [5, 2],
  direct: [7, 1],
  access: [8, 3],
  invalid: [11, 1],
  efer_nx: [12, 1],
  cr0_wp: [13, 1],
  smep_andnot_wp: [14, 1],
  smap_andnot_wp: [15, 1],
  ad_disabled: [16, 1],
  guest_mode: [17, 1],
  passthrough: [18, 1],
  is_mirror: [19, 1],
  smm: [24, 8],
} as const satisfies Readonly<Record<string, readonly [low: number, width: number]>>;

export type RoleField = keyof typeof ROLE_FIELDS;

export function roleField(role: number, name: RoleField): number {
  const [low, width] = ROLE_FIELDS[name];
  return (role >>> low) & ((1 << width) - 1);
}

/** A role word of a kernel that lays it out otherwise. Fields that one of the two lacks are left out. */
export function roleFrom(
  word: number,
  layout: Readonly<Record<string, readonly [low: number, width: number]>>,
): number {
  let role = 0;
  for (const [name, [low]] of Object.entries(ROLE_FIELDS)) {
    const there = layout[name];
    if (there) role |= ((word >>> there[0]) & ((1 << there[1]) - 1)) << low;
  }
  return role >>> 0;
}

/** ACC_* bits as KVM's tracepoints write them. */
const ACCESS = ['---', '--x', 'w--', 'w-x', '-u-', '-ux', 'wu-', 'wux'] as const;

/** A role in words: `level 4, 8-byte, wux, nx wp`; only what is known, and differs from nothing. */
export function roleWords(role: number, known = 0xffff_ffff): string {
  const isKnown = (name: RoleField): boolean => roleField(known, name) !== 0;
  const flags = (['direct', 'invalid', 'smm', 'guest_mode', 'passthrough', 'is_mirror'] as const).filter(
    (name) => roleField(role, name) !== 0,
  );
  const guest = [
    ...(isKnown('efer_nx') ? [roleField(role, 'efer_nx') ? 'nx' : '!nx'] : []),
    ...(isKnown('cr0_wp') ? [roleField(role, 'cr0_wp') ? 'wp' : '!wp'] : []),
    ...(roleField(role, 'smep_andnot_wp') ? ['smep&!wp'] : []),
    ...(roleField(role, 'smap_andnot_wp') ? ['smap&!wp'] : []),
    ...(roleField(role, 'ad_disabled') ? ['!ad'] : []),
  ];
  const size = roleField(role, 'has_4_byte_gpte') ? `4-byte q${roleField(role, 'quadrant')}` : '8-byte';
  return [
    `level ${roleField(role, 'level')}`,
    ...(isKnown('has_4_byte_gpte') ? [size] : []),
    ...(isKnown('access') ? [ACCESS[roleField(role, 'access')]!] : []),
    ...(guest.length > 0 ? [guest.join(' ')] : []),
    ...flags,
  ].join(', ');
}
