"""The server's persistent data: tables, SQLite and PostgreSQL, migrations, backups."""
