"""What runners leave in the work folder of a job, by name."""

ARTIFACT_NAME = "artifact"
REPORT_NAME = "report.json"
VERIFICATION_NAME = "verification.json"
#: Which channels of a program are said to have stayed.
KEPT_NAME = "kept.json"
#: The file of answers, before it is part of the artifact, and what is said of it.
ANSWERS_NAME = "answers"
INFERENCE_NAME = "inference.json"
RECHECK_NAME = "recheck.json"
#: What rounding and shrinking would lose of the model.
SENSITIVITIES_NAME = "sensitivities.json"
