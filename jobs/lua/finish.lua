-- End a job. With a token: only its holder may. With '': the published result is the proof.
-- Then the attempt is the result's own, so that a rebuilt record shows it again.
-- ARGV: id, token, state, failure, failure code, artifact, finished_ms, attempt, cache
local id, token, state = ARGV[1], ARGV[2], ARGV[3]
local current = get('state')
if current == '' then return 'missing' end
if is_terminal(current) then return 'ended' end
if token ~= '' and (current ~= 'running' or get('token') ~= token) then return 'stale' end
if token == '' then set('attempt', math.max(tonumber(get('attempt')), tonumber(ARGV[8]))) end
finish_with(id, state, ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[9])
return 'finished'
