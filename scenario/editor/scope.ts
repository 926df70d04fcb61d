import { type AstNode, DefaultScopeProvider, type ReferenceInfo, type Scope } from 'langium';
import { isGuest, isRepeat, isScenario, type LoopVariable, type Scenario } from '../generated/ast.ts';

/** Names are guests of the same file, and in a loop's statements its variable. */
export class MmuScopeProvider extends DefaultScopeProvider {
  override getScope({ container, property }: ReferenceInfo): Scope {
    const variables: LoopVariable[] = [];
    let root: AstNode = container;
    for (let node: AstNode = container; node.$container; node = node.$container) {
      root = node.$container;
      // Its count stands outside.
      if (isRepeat(root) && node.$containerProperty === 'body' && root.variable) variables.push(root.variable);
    }
    const guests = this.createScopeForNodes(scenarioOf(root)?.guests.filter(isGuest) ?? []);
    return property === 'guest' ? guests : this.createScopeForNodes(variables, guests);
  }
}

const scenarioOf = (node: AstNode): Scenario | undefined => (isScenario(node) ? node : undefined);
