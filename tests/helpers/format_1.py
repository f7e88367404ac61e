"""A vault's database of format 1 with one base, as it was made long ago; frozen."""

FORMAT_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE bases (base_id TEXT PRIMARY KEY, content_hash TEXT NOT NULL UNIQUE, document TEXT NOT NULL,
    amplitudes BLOB NOT NULL, secret BLOB NOT NULL, seal TEXT NOT NULL);
CREATE TABLE copies (copy_id TEXT PRIMARY KEY, base_id TEXT NOT NULL REFERENCES bases, recipient TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('begun', 'written', 'issued')), out TEXT NOT NULL, content_hash TEXT,
    commitment TEXT, created TEXT NOT NULL, sealed BLOB NOT NULL);
CREATE TABLE verified (place TEXT PRIMARY KEY, state TEXT NOT NULL, content_hash TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE bundles (base_id TEXT PRIMARY KEY REFERENCES bases, sealed BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX copies_of_base ON copies (base_id, recipient);
INSERT INTO meta VALUES ('format', '1');
INSERT INTO bases VALUES ('53e1e7b2c8d4', '53e1e7b2c8d4a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1',
    '{"source":"org/tiny-vit","revision":"9f9f9f9f9f9f9f9f9f9f9f9f9f9f9f9f9f9f9f9f","tensors":['
 || '["blocks.0.attn.qkv.weight","F32",[2,3],"0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"],'
 || '["blocks.0.g\\u00eanant.weight","BF16",[3,1,1],'
 || '"0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b"],'
 || '["head.bias","I64",[],"0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c"]],'
 || '"carriers":[["blocks.0.attn.qkv.weight",0.004],["blocks.0.g\\u00eanant.weight",0.002]],'
 || '"family":"tardos","length":4096,"coalition":20,"certified":12,"certified_by":"simulated: minority",'
 || '"alpha":1e-06,"recipients_planned":1000,'
 || '"calibration":{"inputs":"images","images":256,"max_kl":0.001,"kl":9.6e-05,"agreement":0.9985}}',
    x'0000003f000080be0000803f0000004000004040',
    x'000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f',
    '28b9fef608fc93ac9b074146f85de8f31e496f9740ec502fce8f60d787f146b0');
"""
