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
JOURNAL_NAME = "journal"
#: What the original answers, for the artifact to be compared with.
OUTPUTS_NAME = "outputs.safetensors"
BEFORE_NAME = "before.json"
AFTER_NAME = "after.json"
#: What data decided about, and what was found on the way.
CALIBRATED_NAME = "calibrated"
CALIBRATION_NAME = "calibration.json"
#: On which boot of the machine all of a stage was made.
DONE_NAME = "done"
