// Completion of ssihv's command line in shells: `ssihv completion SHELL` prints what a shell reads
// once, and that asks `ssihv complete -- WORDS` for what could stand where the cursor is. So what
// is proposed is what the binary understands, flags of every command included.

import { buildCommand, type InputCompletion } from "@stricli/core";

import { SsihvError } from "../base/errors.ts";
import type { CliContext } from "./context.ts";

/** One proposal a line, a tab and its meaning after it; nothing: a file name may do. */
const BASH = `# bash completion for ssihv: source <(ssihv completion bash)
_ssihv() {
  local IFS=$'\\n'
  COMPREPLY=($(ssihv complete -- "\${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null | cut -f1))
  if [ "\${#COMPREPLY[@]}" -eq 0 ]; then
    compopt -o default 2>/dev/null
  fi
}
complete -F _ssihv ssihv
`;

const ZSH = `#compdef ssihv
# zsh completion for ssihv: source <(ssihv completion zsh), or a file _ssihv in a folder of fpath
_ssihv() {
  local -a found
  local line
  while IFS= read -r line; do
    found+=("\${\${line//:/\\\\:}/$'\\t'/:}")
  done < <(ssihv complete -- "\${(@)words[2,CURRENT]}" 2>/dev/null)
  if (( \${#found} )); then
    _describe ssihv found
  else
    _files
  fi
}
if [ "\${funcstack[1]-}" = _ssihv ]; then
  _ssihv "$@"
else
  compdef _ssihv ssihv
fi
`;

const FISH = `# fish completion for ssihv: ssihv completion fish | source
function __ssihv_complete
  set -l before (commandline -opc)
  set -l found (ssihv complete -- $before[2..-1] (commandline -ct) 2>/dev/null)
  if test (count $found) -gt 0
    printf '%s\\n' $found
  else
    __fish_complete_path (commandline -ct)
  end
end
complete -c ssihv -f -a '(__ssihv_complete)'
`;

const SCRIPTS: Readonly<Record<string, string>> = { bash: BASH, zsh: ZSH, fish: FISH };
export const SHELLS: readonly string[] = Object.keys(SCRIPTS);

/** What `ssihv complete` prints. */
export function proposalLines(proposals: readonly InputCompletion[]): string {
  return proposals.map(({ completion, brief }) => `${completion}\t${brief}\n`).join("");
}

function shell(value: string): string {
  if (value in SCRIPTS) return value;
  throw new SsihvError("flag_invalid", `no completion for "${value.slice(0, 40)}"`, {
    hint: `for ${SHELLS.join(", ")}`,
  });
}

function completion(this: CliContext, _flags: Record<never, never>, name: string): void {
  this.process.stdout.write(SCRIPTS[name] ?? "");
}

export const completionCommand = buildCommand<Record<never, never>, [shell: string], CliContext>({
  func: completion,
  docs: {
    brief: "print what makes a shell complete ssihv's commands and flags",
    fullDescription: `Examples:
  source <(ssihv completion bash)                 now; in ~/.bashrc for always
  ssihv completion bash >/etc/bash_completion.d/ssihv
  ssihv completion zsh >~/.zfunc/_ssihv           a folder of fpath
  ssihv completion fish >~/.config/fish/completions/ssihv.fish`,
    customUsage: ["bash|zsh|fish"],
  },
  parameters: {
    flags: {},
    positional: {
      kind: "tuple",
      parameters: [
        {
          parse: shell,
          brief: "the shell",
          placeholder: "SHELL",
          proposeCompletions: (partial: string) =>
            SHELLS.filter((each) => each.startsWith(partial)),
        },
      ],
    },
  },
});
