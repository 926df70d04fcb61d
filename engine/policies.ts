/**
 * Where KVM can do a thing in more than one way, and a run may choose. Each seam is cut exactly where the ways differ; the
 * default is today's kernel.
 */
export interface Policies {
  /** When dirty logging starts: `eager` splits large pages at once (KVM's `eager_page_split`), `lazy` at the first write. */
  readonly 'page-split': 'eager' | 'lazy';
}

export const DEFAULT_POLICIES: Policies = { 'page-split': 'eager' };

const VALUES: { readonly [K in keyof Policies]: readonly Policies[K][] } = { 'page-split': ['eager', 'lazy'] };

function isPolicy(name: string): name is keyof Policies {
  return Object.hasOwn(VALUES, name);
}

/** These policies with one chosen by name, or what is wrong with the choice and what there is. */
export function choosePolicy(policies: Policies, name: string, value: string): Policies | { readonly error: string } {
  if (!isPolicy(name)) return { error: `unknown policy ${name}; there are ${Object.keys(VALUES).join(', ')}` };
  const chosen = VALUES[name].find((candidate) => candidate === value);
  if (chosen === undefined)
    return { error: `policy ${name} cannot be ${value || 'empty'}; it is ${VALUES[name].join(' or ')}` };
  return { ...policies, [name]: chosen };
}
