"""Claims queued studies, drives each, holds the lease."""
