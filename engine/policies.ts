/**
 * Where KVM can do a thing in more than one way, and a run may choose. Each seam is cut exactly where the ways differ; the
 * default is today's kernel.
 */
export interface Policies {
  /** When dirty logging starts: `eager` splits large pages at once (KVM's `eager_page_split`), `lazy` at the first write. */
  readonly 'page-split': 'eager' | 'lazy';
}

export const DEFAULT_POLICIES: Policies = { 'page-split': 'eager' };

/** What each policy can be, its default first. */
export const POLICY_VALUES: { readonly [K in keyof Policies]: readonly Policies[K][] } = {
  'page-split': ['eager', 'lazy'],
};

function isPolicy(name: string): name is keyof Policies {
  return Object.hasOwn(POLICY_VALUES, name);
}

/** These policies with one chosen by name, or what is wrong with the choice and what there is. */
export function choosePolicy(policies: Policies, name: string, value: string): Policies | { readonly error: string } {
  if (!isPolicy(name)) return { error: `unknown policy ${name}; there are ${Object.keys(POLICY_VALUES).join(', ')}` };
  const chosen = POLICY_VALUES[name].find((candidate) => candidate === value);
  if (chosen === undefined)
    return { error: `policy ${name} cannot be ${value || 'empty'}; it is ${POLICY_VALUES[name].join(' or ')}` };
  return { ...policies, [name]: chosen };
}
