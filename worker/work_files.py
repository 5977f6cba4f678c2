"""What runners leave in the work folder of a job, by name."""

ARTIFACT_NAME = "artifact"
REPORT_NAME = "report.json"
VERIFICATION_NAME = "verification.json"
#: Which channels of a program are said to have stayed.
KEPT_NAME = "kept.json"
