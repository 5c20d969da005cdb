"""Names of the files in the directory of a run, for their writer and every reader."""

MODEL = "model.json"  # the ModelConfig
CONFIG = "config.json"  # the whole Config
TOKENIZER = "tokenizer"
STEPS = "checkpoints"  # one directory per saved step
DAMAGED = "damaged"  # steps that were not as they were written
SKIPPED = "skipped"  # batches whose loss or gradients were not finite
PROFILES = "profiles"  # traces of the profiler
PROFILE_REQUEST = "profile"  # asks a running process for a trace
PROGRAMS = "programs"  # compiled programs, for when the run is started again
TENSORBOARD = "tensorboard"  # the log once more, for TensorBoard

LOG = "log.jsonl"  # a line every `run.log_every` steps
VALIDATION = "validation.jsonl"  # a line per validation
EVENTS = "events.jsonl"  # a line for everything else that happened
EVALUATION = "evaluation.json"  # scores of the trained model
ROUND_TRIP = "round_trip.json"  # comparison with the model exported and read back
REPORT = "report.html"
