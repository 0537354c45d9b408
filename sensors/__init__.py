"""What starts runs and who is told: sensors, schedules, and the plan that orders the jobs."""
