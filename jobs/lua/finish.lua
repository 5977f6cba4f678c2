-- End a job. With a token: only its holder may. With '': the published result is the proof.
-- ARGV: id, token, state, failure, failure code, artifact
local id, token, state = ARGV[1], ARGV[2], ARGV[3]
local current = get('state')
if current == '' then return 'missing' end
if is_terminal(current) then return 'ended' end
if token ~= '' and (current ~= 'running' or get('token') ~= token) then return 'stale' end
set('artifact', ARGV[6])
finish(id, now_ms(), state, ARGV[4], ARGV[5])
return 'finished'
