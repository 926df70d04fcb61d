import type { RoleFieldAnswer, RootCardAnswer, VcpuRootsAnswer } from '../../engine/queries/answers.ts';

/** A field of a role beside the same field of the role that is wanted. */
export interface RoleCell extends RoleFieldAnswer {
  /** What is wanted, where it is another. */
  readonly wanted?: number;
}

/** A role's fields, those marked that differ from another role's. A field that only one of the two has does not differ. */
export function compareRoles(
  fields: readonly RoleFieldAnswer[],
  wanted: readonly RoleFieldAnswer[],
): readonly RoleCell[] {
  return fields.map(({ name, value }) => {
    const other = wanted.find((each) => each.name === name)?.value;
    return other === undefined || other === value ? { name, value } : { name, value, wanted: other };
  });
}

/** Names of the fields that differ. */
export function differingFields(cells: readonly RoleCell[]): readonly string[] {
  return cells.filter(({ wanted }) => wanted !== undefined).map(({ name }) => name);
}

/** A field's value: rights as KVM's tracepoints write them, numbers else. */
export function fieldWords(name: string, value: number): string {
  if (name !== 'access') return `${value}`;
  return [...'wux'].map((right, index) => ((value & [2, 4, 1][index]!) === 0 ? '-' : right)).join('');
}

/** Whether a switch would take a root, and if not, why not. */
export function reuseWords(
  root: RootCardAnswer,
  { pgd, pgdName, rootRole }: VcpuRootsAnswer,
  isCurrent: boolean,
): string {
  if (root.invalid) return 'being taken down';
  if (root.isUsable) return isCurrent ? 'fits what is wanted' : 'would be reused';
  const not = isCurrent ? 'does not fit' : 'would not be reused';
  if (root.quarters) return 'pae_root: never reused';
  if (!root.fields) return `${not}: its role is not told`;
  const differing = differingFields(compareRoles(root.fields, rootRole.fields));
  if (differing.length > 0) return `${not}: another ${differing.length > 2 ? 'role' : differing.join(' and ')}`;
  return root.pgd !== undefined && BigInt(root.pgd) !== BigInt(pgd) ? `${not}: another ${pgdName}` : not;
}

/** Whether the CR3 that a root was made for says anything: of a direct root it does not. */
export function isDirect({ fields }: RootCardAnswer): boolean {
  return fields?.some(({ name, value }) => name === 'direct' && value === 1) ?? false;
}
