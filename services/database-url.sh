# Sourced by entry points: HPSEARCH_DATABASE_URL from the database's host and the file with its password.
# Without a host, or with a URL given, nothing changes.
if [ -z "${HPSEARCH_DATABASE_URL:-}" ] && [ -n "${DATABASE_HOST:-}" ]; then
    password=$(python -c '
import pathlib, sys, urllib.parse
print(urllib.parse.quote(pathlib.Path(sys.argv[1]).read_text().strip(), safe=""))
' "${DATABASE_PASSWORD_FILE:-/run/secrets/postgres_password}")
    export HPSEARCH_DATABASE_URL="postgresql+psycopg://hpsearch:$password@$DATABASE_HOST:${DATABASE_PORT:-5432}/hpsearch"
    unset password
fi
