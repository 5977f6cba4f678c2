-- End a job. With a token: only its holder may. With '': the published result is the proof.
-- The moment and the attempt are the result's own, so that a rebuilt record shows them again.
-- ARGV: id, token, state, failure, failure code, artifact, finished_ms, attempt
local id, token, state = ARGV[1], ARGV[2], ARGV[3]
local current = get('state')
if current == '' then return 'missing' end
if is_terminal(current) then return 'ended' end
if token ~= '' and (current ~= 'running' or get('token') ~= token) then return 'stale' end
set('artifact', ARGV[6])
if token == '' then set('attempt', math.max(tonumber(get('attempt')), tonumber(ARGV[8]))) end
local ended = math.max(tonumber(ARGV[7]), tonumber(get('started_ms')) or 0)
finish(id, ended, state, ARGV[4], ARGV[5])
return 'finished'
