// What the argument parser refuses, as our own errors: the flag is named, the nearest one offered,
// and the way out told. Classes are told apart by instanceof, since a minified build has no class
// names.

import {
  AliasNotFoundError,
  ArgumentParseError,
  EnumValidationError,
  FlagNotFoundError,
  InvalidNegatedFlagSyntaxError,
  UnexpectedFlagError,
  UnexpectedPositionalError,
  UnsatisfiedFlagError,
  UnsatisfiedPositionalError,
} from "@stricli/core";

import { messageOf, SsihvError } from "../base/errors.ts";
import { suggest } from "../base/suggest.ts";

const HELP = "ssihv --help lists the commands, ssihv COMMAND --help their flags";

function invalid(message: string, hint = HELP): SsihvError {
  return new SsihvError("flag_invalid", message, { hint });
}

function offer(corrections: readonly string[], dashes = ""): string {
  if (corrections.length === 0) return HELP;
  return `did you mean ${corrections.map((word) => dashes + word).join(" or ")}?`;
}

/** pageTables -> page-tables, as --help shows it. */
function kebab(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

export function usageError(error: unknown): SsihvError {
  if (error instanceof SsihvError) return error;
  if (error instanceof FlagNotFoundError) {
    const corrections = error.corrections.map(kebab);
    const unique = [...new Set(corrections)];
    return invalid(`there is no flag --${error.input}`, offer(unique, "--"));
  }
  if (error instanceof AliasNotFoundError) return invalid(`there is no flag -${error.input}`);
  if (error instanceof ArgumentParseError) {
    if (error.exception instanceof SsihvError) return error.exception;
    const why = error.exception instanceof Error ? error.exception.message : "not understood";
    return invalid(`${error.externalFlagNameOrPlaceholder}: "${error.input}": ${why}`);
  }
  if (error instanceof EnumValidationError) {
    const near = suggest(error.input, error.values);
    const flag = kebab(error.externalFlagName);
    const hint = near === undefined ? `--${flag} ${error.values[0]}` : `--${flag} ${near}`;
    const values = error.values.join(", ");
    return invalid(`--${flag}: "${error.input}" is not one of ${values}`, hint);
  }
  if (error instanceof UnsatisfiedFlagError) {
    const flag = kebab(error.externalFlagName);
    const next = error.nextFlagName;
    const where = next === undefined ? "" : ` (--${kebab(next)} follows)`;
    return invalid(`--${flag} needs a value${where}`);
  }
  if (error instanceof UnexpectedFlagError) {
    const flag = kebab(error.externalFlagName);
    return invalid(`--${flag} was given twice: "${error.previousInput}" and "${error.input}"`);
  }
  if (error instanceof InvalidNegatedFlagSyntaxError) {
    const flag = kebab(error.externalFlagName);
    return invalid(`--${flag} takes no value, "${error.valueText}" was given`);
  }
  if (error instanceof UnexpectedPositionalError) {
    return invalid(`"${error.input}" is one argument too many`, `flags start with --; ${HELP}`);
  }
  if (error instanceof UnsatisfiedPositionalError) {
    return invalid(`the argument ${error.placeholder} is missing`);
  }
  return invalid(messageOf(error));
}

export function unknownCommand(input: string, corrections: readonly string[]): SsihvError {
  return invalid(`there is no command ${input}`, offer(corrections));
}
