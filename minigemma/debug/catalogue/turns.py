"""T: turns, thoughts and tools. All show in ids; those that the ids of a prompt show are found by turn_mistakes.py."""

from .entry import Fault

CUE = "end the prompt as the size needs: only 12B, 26B-A4B and 31B, with thinking off, get a closed empty thought"
STOPS = "look the stop ids up by name: <eos>, <turn|> and <|tool_response>, or 1, 106 and 50"
READER = "begin in the thought only if the prompt ends in an open <|channel>thought"


def _fault(id, title, symptom, remedy, seen):
    return Fault(id, title, probe="ids", symptom=symptom, remedy=remedy, seen=seen)


ENTRIES = (
    _fault("T1", "the cue closes an empty thought where it must not", "a small model reasons in plain text", CUE,
           "ComfyUI#15278; ollama#15490, #15560; lmstudio#1805"),
    _fault("T2", "the cue of a larger model lacks the closed empty thought", "the model thinks by itself", CUE,
           "ollama 96b202d34 to e585ecd11; SillyTavern#5403"),
    _fault("T3", "every cue opens a thought", "the model always thinks; greedy decoding collapses to <pad>",
           "open a thought only behind a reply with thinking on; elsewhere the model opens it",
           "odysseus#2955; lablup/mlxcel#686"),
    _fault("T4", "turns of another model, such as <start_of_turn>", "the answer is garbage",
           "write turns as <|turn>ROLE ... <turn|>, with the tokens of these names", "subtitleedit#12714"),
    _fault("T5", "<turn|> does not end an answer", "text runs on to the limit", STOPS,
           "the #172 and #181 of a public port"),
    _fault("T6", "<|tool_response> does not end an answer", "it is repeated to the limit, or a reply is made up", STOPS,
           "FreeToken#201; vllm-mlx#383; llama.cpp#21418"),
    _fault("T7", "a grammar knows one of the stop ids only", "the same call is written again and again",
           f"{STOPS}, inside a grammar too", "Rapid-MLX#1177"),
    _fault("T8", "special tokens are removed before an answer is read", "the word thought, or a bare call, in the text",
           "split an answer by the ids of its special tokens before decoding", "vllm#38858, #39027, #45832"),
    _fault("T9", "a role or a thought has marks of another model", "marks in the text, no thought is found",
           "roles are system, user and model; a thought stands between <|channel>thought and <channel|>",
           "lmstudio#2013; kernel-ai-assistant#941, #946; hermes-webui#648"),
    _fault("T10", "thinking is on because the vocabulary has its tokens", "all text is a thought, no answer",
           "ask for a thought only where the user does", "mlx-lm#1352, #1361"),
    _fault("T11", "thinking is asked for in text, not by the token <|think|>", "no thoughts",
           "put the token <|think|> first in the system turn, not its name", "kernel-ai-assistant#946; omlx#560"),
    _fault("T12", "an answer is read as a thought because thinking is on", "the answer appears as a thought", READER,
           "vllm#48217, #48262"),
    _fault("T13", "an answer is read as text although the prompt opened a thought", "a thought in the answer", READER,
           "omlx#2533; llama.cpp#22325"),
    _fault("T14", "thoughts stay in the history", "loops; the word thought in the text",
           "remove thoughts from the turns before the last user turn", "openclaw#68704; omlx#1028"),
    _fault("T15", "the thought before a call of the current turn is removed", "repeated searches, empty arguments",
           "keep a turn's thoughts before its calls until the user speaks", "hermes-agent#70745; textgen#7578"),
    _fault("T16", "a reply of a tool is a turn of its own", "the model does not go on, or calls again",
           "write a reply as <|tool_response>..<tool_response|> right behind its call, in the same model turn",
           "transformers#45257; llama.cpp#21418"),
    _fault("T17", "turns do not balance around calls and replies", "the same tools are called again and again",
           "close a turn once; calls, replies and the answer are one model turn", "ollama#17182; club-3090#737"),
    _fault("T18", "a call or a reply is cut", "arguments are cut, or text in place of an object",
           "read arguments with a parser that counts braces outside strings",
           "mlx-vlm#914, #916; Rapid-MLX#1102; vmlx-swift#76; AReno#36"),
    _fault("T19", "strings have JSON quotes or escapes", "parse errors, text is cut",
           'put strings between two <|"|> tokens, without JSON quotes or escapes', "ollama#15241, #15254; vllm"),
    _fault("T20", "arguments are inserted as JSON text", "arguments are empty or have braces twice",
           "parse the arguments first: the format needs an object, not its JSON text", "Automodel#3885"),
    _fault("T21", "null is written as None", "a value has the wrong type", "write null", "ollama#17182; vllm"),
    _fault("T22", "a parameter is missing from its declaration", "a required parameter is unknown",
           "declare every parameter, whatever its name", "ollama#15670, #18468; omlx#741"),
    _fault("T23", "a conversation does not begin with one <bos>", "repetition, degenerate text",
           "write <bos> once, at the start; the tokenizer adds none", "unsloth#10312; vllm#52304"),
    _fault("T24", "the name of a special token in a user's text becomes the token", "forged turns",
           "encode what a user typed as text", "gemma#768; llama.cpp#24382; transformers#47822"),
    _fault("T25", "the chat template is an old one", "the format of April 2026",
           "use the template published on 2026-07-09, or turns.py", "FastFlowLM#634; Rapid-MLX; club-3090#737"),
    _fault("T26", "an empty thought stays in the history", "cache misses; thoughts that nobody asked for",
           "leave empty thoughts out of the history, even where the cue had one", "vllm#42559; club-3090#737"),
)  # fmt: skip
