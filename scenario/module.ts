import {
  createDefaultCoreModule,
  createDefaultSharedCoreModule,
  EmptyFileSystem,
  inject,
  type LangiumCoreServices,
  type Module,
  type PartialLangiumCoreServices,
} from 'langium';
import { MmuGeneratedModule, MmuGeneratedSharedModule } from './generated/module.ts';
import { MmuLexer, MmuLexerErrors, MmuTokenBuilder } from './lexer.ts';
import { MmuSyntaxErrors } from './syntax-errors.ts';

/** What makes Langium's parser this language's; with or without an editor around it. */
export const MmuParserModule = {
  parser: {
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
