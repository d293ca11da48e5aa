PRAGMA user_version=3;
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('9');
CREATE TABLE audit (
	id INTEGER NOT NULL, 
	at FLOAT NOT NULL, 
	who TEXT NOT NULL, 
	address TEXT NOT NULL, 
	verb TEXT NOT NULL, 
	target TEXT NOT NULL, 
	detail TEXT NOT NULL, 
	boards INTEGER, 
	first_job INTEGER, 
	last_job INTEGER, 
	outcome TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "audit" VALUES(1,1790000000.0,'ann','127.0.0.1','label','lab-*','room=lab',2,NULL,NULL,'done');
INSERT INTO "audit" VALUES(2,1.79604960217159080508e+09,'ann','','submit','','',2,1,2,'done');
INSERT INTO "audit" VALUES(3,1.79604960218014073373e+09,'ann','','submit','','',2,3,4,'done');
CREATE TABLE blob_uses (
	user TEXT NOT NULL, 
	blob TEXT NOT NULL, 
	PRIMARY KEY (user, blob)
);
INSERT INTO "blob_uses" VALUES('submission 3','1f58b9145b24d108d7ac38887338b3ea3229833b9c1e418250343f907bfd1047');
CREATE TABLE blobs (
	sha256 TEXT NOT NULL, 
	size INTEGER NOT NULL, 
	bytes BLOB NOT NULL, 
	used FLOAT NOT NULL, 
	PRIMARY KEY (sha256)
);
INSERT INTO "blobs" VALUES('1f58b9145b24d108d7ac38887338b3ea3229833b9c1e418250343f907bfd1047',7,X'72657175657374',1.79604960218294382092e+09);
CREATE TABLE boards (
	id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	"key" BLOB NOT NULL, 
	labels JSON NOT NULL, 
	facts JSON NOT NULL, 
	enrolled FLOAT NOT NULL, 
	last_seen FLOAT, 
	gen INTEGER NOT NULL, 
	nonce BLOB, 
	plain BOOLEAN NOT NULL, 
	token TEXT NOT NULL, 
	holder TEXT, 
	epoch INTEGER, 
	serial TEXT, 
	note TEXT, 
	reserved_by TEXT, 
	reserved_until FLOAT, 
	stay_seconds FLOAT, 
	stay_until FLOAT, 
	generation TEXT, 
	generation_state TEXT, 
	PRIMARY KEY (id), 
	UNIQUE (name)
);
INSERT INTO "boards" VALUES('id1','lab-1',X'000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F','{"room": "lab"}','{}',1790000000.0,NULL,3,X'6E6F6E6365',0,'abc',NULL,NULL,'A17','shelf',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "boards" VALUES('id2','lab-2',X'1F1E1D1C1B1A191817161514131211100F0E0D0C0B0A09080706050403020100','{}','{"platform": "esp32"}',1790000000.0,1.79604960217157793049e+09,0,NULL,1,'',NULL,NULL,NULL,NULL,'ann',1890000000.0,NULL,NULL,NULL,NULL);
CREATE TABLE counters (
	name TEXT NOT NULL, 
	next INTEGER NOT NULL, 
	PRIMARY KEY (name)
);
CREATE TABLE crashes (
	board TEXT NOT NULL, 
	digest TEXT NOT NULL, 
	text TEXT NOT NULL, 
	first FLOAT NOT NULL, 
	last FLOAT NOT NULL, 
	PRIMARY KEY (board, digest)
);
INSERT INTO "crashes" VALUES('id1','d1','OSError: 5',1790000000.0,1790000000.0);
CREATE TABLE generations (
	sha256 TEXT NOT NULL, 
	manifest JSON NOT NULL, 
	created FLOAT NOT NULL, 
	created_by TEXT NOT NULL, 
	PRIMARY KEY (sha256)
);
CREATE TABLE jobs (
	id INTEGER NOT NULL, 
	board TEXT NOT NULL, 
	caller TEXT NOT NULL, 
	created FLOAT NOT NULL, 
	ended FLOAT, 
	status TEXT, 
	error TEXT, 
	server TEXT, 
	epoch INTEGER, 
	text TEXT, 
	notebook TEXT, 
	token TEXT, 
	PRIMARY KEY (id)
);
INSERT INTO "jobs" VALUES(1,'id1','ann',1.79604960217159080508e+09,1.79604960217176723479e+09,'error','ValueError: ä',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(2,'id2','ann',1.79604960217159080508e+09,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(3,'id1','ann',1.79604960218014073373e+09,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'abc');
INSERT INTO "jobs" VALUES(4,'id2','ann',1.79604960218014073373e+09,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'abc');
CREATE TABLE logs (
	id INTEGER NOT NULL, 
	board TEXT NOT NULL, 
	at FLOAT NOT NULL, 
	lost INTEGER NOT NULL, 
	size INTEGER NOT NULL, 
	text TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "logs" VALUES(1,'id1',1790000000.0,0,6,'ready
');
CREATE TABLE outputs (
	job INTEGER NOT NULL, 
	at FLOAT NOT NULL, 
	size INTEGER NOT NULL, 
	output TEXT NOT NULL, 
	truncated BOOLEAN NOT NULL, 
	value TEXT NOT NULL, 
	error TEXT NOT NULL, 
	PRIMARY KEY (job)
);
CREATE TABLE packages (
	board TEXT NOT NULL, 
	name TEXT NOT NULL, 
	version TEXT NOT NULL, 
	source TEXT NOT NULL, 
	needs JSON NOT NULL, 
	options JSON NOT NULL, 
	files JSON NOT NULL, 
	confirmed FLOAT NOT NULL, 
	PRIMARY KEY (board, name)
);
CREATE TABLE restarts (
	board TEXT NOT NULL, 
	hour INTEGER NOT NULL, 
	cause TEXT NOT NULL, 
	count INTEGER NOT NULL, 
	PRIMARY KEY (board, hour, cause)
);
INSERT INTO "restarts" VALUES('id1',497222,'wdt',2);
CREATE TABLE rollout_boards (
	rollout INTEGER NOT NULL, 
	board TEXT NOT NULL, 
	wave INTEGER NOT NULL, 
	state TEXT NOT NULL, 
	since FLOAT NOT NULL, 
	why TEXT NOT NULL, 
	PRIMARY KEY (rollout, board)
);
CREATE TABLE rollouts (
	number INTEGER NOT NULL, 
	"group" TEXT NOT NULL, 
	generation TEXT NOT NULL, 
	previous TEXT, 
	state TEXT NOT NULL, 
	why TEXT NOT NULL, 
	token TEXT NOT NULL, 
	owner TEXT, 
	epoch INTEGER NOT NULL, 
	"plan" JSON NOT NULL, 
	created FLOAT NOT NULL, 
	changed FLOAT NOT NULL, 
	PRIMARY KEY (number)
);
CREATE TABLE sample_minutes (
	board TEXT NOT NULL, 
	name TEXT NOT NULL, 
	time FLOAT NOT NULL, 
	count INTEGER NOT NULL, 
	sum FLOAT NOT NULL, 
	min FLOAT NOT NULL, 
	max FLOAT NOT NULL, 
	last FLOAT NOT NULL, 
	last_time FLOAT NOT NULL, 
	PRIMARY KEY (board, name, time)
);
CREATE TABLE samples (
	board TEXT NOT NULL, 
	name TEXT NOT NULL, 
	time FLOAT NOT NULL, 
	value FLOAT NOT NULL
);
CREATE TABLE secret_uses (
	board TEXT NOT NULL, 
	path TEXT NOT NULL, 
	secret TEXT NOT NULL, 
	PRIMARY KEY (board, path)
);
INSERT INTO "secret_uses" VALUES('id1','["mqtt"]','mqtt');
CREATE TABLE secrets (
	name TEXT NOT NULL, 
	value TEXT NOT NULL, 
	target TEXT NOT NULL, 
	changed FLOAT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "secrets" VALUES('mqtt','secret','all',1790000000.0);
CREATE TABLE servers (
	id TEXT NOT NULL, 
	address TEXT NOT NULL, 
	seen FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE shared (
	name TEXT NOT NULL, 
	value BLOB NOT NULL, 
	PRIMARY KEY (name)
);
CREATE TABLE texts (
	sha256 TEXT NOT NULL, 
	text TEXT NOT NULL, 
	created FLOAT NOT NULL, 
	PRIMARY KEY (sha256)
);
CREATE TABLE tokens (
	hash TEXT NOT NULL, 
	name TEXT NOT NULL, 
	role TEXT NOT NULL, 
	target TEXT NOT NULL, 
	created FLOAT NOT NULL, 
	expires FLOAT, 
	revoked FLOAT, 
	uses INTEGER, 
	PRIMARY KEY (hash)
);
INSERT INTO "tokens" VALUES('abc','ann','operator','lab-*',1790000001.0,1890000000.0,NULL,NULL);
INSERT INTO "tokens" VALUES('def','bob','viewer','all',1790000001.0,NULL,1790000002.0,5);
CREATE TABLE waiting (
	id INTEGER NOT NULL, 
	job INTEGER NOT NULL, 
	board TEXT NOT NULL, 
	token TEXT NOT NULL, 
	request TEXT NOT NULL, 
	submission INTEGER NOT NULL, 
	size INTEGER NOT NULL, 
	fresh BOOLEAN NOT NULL, 
	expires FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "waiting" VALUES(1,3,'id1','abc','1f58b9145b24d108d7ac38887338b3ea3229833b9c1e418250343f907bfd1047',3,7,0,1890000000.0);
INSERT INTO "waiting" VALUES(2,4,'id2','abc','1f58b9145b24d108d7ac38887338b3ea3229833b9c1e418250343f907bfd1047',3,7,0,1890000000.0);
CREATE INDEX logs_board ON logs (board, id, size);
CREATE UNIQUE INDEX tokens_name ON tokens (name) WHERE revoked IS NULL;
CREATE INDEX jobs_open ON jobs (board) WHERE ended IS NULL;
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit WHEN OLD.at > CAST(strftime('%s', 'now') AS INTEGER) - 2592000 OR EXISTS (SELECT 1 FROM audit WHERE id < OLD.id) BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id) BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE INDEX rollouts_group ON rollouts ("group", number);
CREATE INDEX rollout_boards_board ON rollout_boards (board);
CREATE INDEX samples_time ON samples (time);
CREATE INDEX samples_board ON samples (board, name, time);
CREATE INDEX sample_minutes_time ON sample_minutes (time);
CREATE INDEX blob_uses_blob ON blob_uses (blob);
CREATE INDEX waiting_submission ON waiting (submission);
CREATE UNIQUE INDEX waiting_job ON waiting (job);
CREATE INDEX waiting_token ON waiting (token);
CREATE INDEX waiting_board ON waiting (board, id);
CREATE INDEX waiting_expires ON waiting (expires);
COMMIT;
