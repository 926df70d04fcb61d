import {
  CstNodeBuilder,
  createDefaultCoreModule,
  createDefaultSharedCoreModule,
  createLangiumParser,
  EmptyFileSystem,
  inject,
  type LangiumCoreServices,
  type LangiumParser,
  type Module,
  type PartialLangiumCoreServices,
} from 'langium';
import { MmuGeneratedModule, MmuGeneratedSharedModule } from './generated/module.ts';
import { MmuLexer, MmuLexerErrors, MmuTokenBuilder } from './lexer.ts';
import { MmuSyntaxErrors } from './syntax-errors.ts';

/**
 * Langium's parser, which before every token looks for the place of the comments there in a list of all that went
 * before, even when there are none. That takes quadratic time, and this language's lexer keeps comments to itself.
 */
function createParser(services: LangiumCoreServices): LangiumParser {
  const parser = createLangiumParser(services);
  const builder: unknown = Reflect.get(parser, 'nodeBuilder');
  if (builder instanceof CstNodeBuilder) {
    const addHiddenNodes = builder.addHiddenNodes.bind(builder);
    builder.addHiddenNodes = (tokens) => {
      if (tokens.length > 0) addHiddenNodes(tokens);
    };
  }
  return parser;
}

/** What makes Langium's parser this language's; with or without an editor around it. */
export const MmuParserModule = {
  parser: {
    LangiumParser: createParser,
    TokenBuilder: () => new MmuTokenBuilder(),
    Lexer: (services) => new MmuLexer(services),
    LexerErrorMessageProvider: () => new MmuLexerErrors(),
    ParserErrorMessageProvider: () => new MmuSyntaxErrors(),
  },
} satisfies Module<LangiumCoreServices, PartialLangiumCoreServices>;

/** Services for parsing alone: no documents, no index, no editor. */
export function createParserServices(): LangiumCoreServices {
  const shared = inject(createDefaultSharedCoreModule(EmptyFileSystem), MmuGeneratedSharedModule);
  const services: LangiumCoreServices = inject(
    createDefaultCoreModule({ shared }),
    MmuGeneratedModule,
    MmuParserModule,
  );
  shared.ServiceRegistry.register(services);
  return services;
}
