-- Shared by every script. The clock is Redis's own, so no two machines can disagree about a lease.
-- Every script takes the same keys: KEYS[1] the job, [2] its events, [3] open jobs by the time of
-- their next check, [4] queued jobs, [5] all jobs.
local job, events, open, queued, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function get(field)
  return redis.call('HGET', job, field) or ''
end

local function set(...)
  redis.call('HSET', job, ...)
end

local function is_terminal(state)
  return state == 'succeeded' or state == 'failed' or state == 'cancelled'
end

-- Count a visible change and tell it to those who watch.
local function bump(kind)
  local revision = redis.call('HINCRBY', job, 'revision', 1)
  local progress = get('progress')
  local failure = get('failure')
  local data = '{"revision":' .. revision
    .. ',"state":"' .. get('state') .. '"'
    .. ',"attempt":' .. (tonumber(get('attempt')) or 0)
    .. ',"cancel_requested":' .. (get('cancel_requested') == '1' and 'true' or 'false')
    .. ',"stop_requested":' .. (get('stop_requested') == '1' and 'true' or 'false')
    .. ',"progress":' .. (progress ~= '' and progress or 'null')
    .. ',"failure":' .. (failure ~= '' and failure or 'null') .. '}'
  redis.call('XADD', events, 'MAXLEN', '~', 1000, '*', 'type', kind, 'data', data)
  redis.call('PUBLISH', 'modelpress:changed', job)
  return revision
end

-- Close the running attempt's row, if one is open.
local function end_attempt(now, outcome, reason)
  local raw = get('attempts')
  if raw == '' then return end
  local attempts = cjson.decode(raw)
  local last = attempts[#attempts]
  if last and not last.ended_ms then
    last.ended_ms = string.format('%.0f', now)
    last.outcome = outcome
    if reason ~= '' then last.reason = reason end
    set('attempts', cjson.encode(attempts))
  end
end

-- Add an end to what `jobs.tally` reads.
local function tally(now, state, code)
  -- A record that is brought back was counted when its job ended.
  if now_ms() - now > 60000 then return end
  local key = 'modelpress:tally:'
  redis.call('HINCRBY', key, 'ended|' .. state .. '|' .. code, 1)
  local started = tonumber(get('started_ms'))
  if started then
    local waited = math.max(0, started - tonumber(get('created_ms')))
    redis.call('HINCRBYFLOAT', key, 'queue_seconds', waited / 1000)
    redis.call('HINCRBYFLOAT', key, 'run_seconds', math.max(0, now - started) / 1000)
    redis.call('HINCRBY', key, 'runs', 1)
  end
end

-- The only way into a terminal state.
local function finish(id, now, state, failure, code)
  end_attempt(now, state, code)
  set('state', state, 'failure', failure, 'finished_ms', string.format('%.0f', now), 'lease_until_ms', 0)
  redis.call('ZREM', open, id)
  redis.call('ZREM', queued, id)
  tally(now, state, code)
  bump(state)
end

-- End a job as its published result says. The moment is the result's own, so that a rebuilt record
-- shows it again; a start that is later by another machine's clock gives way.
local function finish_with(id, state, failure, code, artifact, finished_ms, cache)
  set('artifact', artifact)
  if cache ~= '' then set('cache', cache) end
  local started = tonumber(get('started_ms'))
  if started and started > tonumber(finished_ms) then set('started_ms', finished_ms) end
  finish(id, tonumber(finished_ms), state, failure, code)
end

-- Back to the queue, first in line by its age. One that is to wait takes its place from then on.
local function requeue(id, now, code, check_ms, from_ms)
  end_attempt(now, 'requeued', code)
  set('state', 'queued', 'lease_until_ms', 0, 'progress', '')
  redis.call('ZADD', open, check_ms, id)
  redis.call('ZADD', queued, from_ms or math.min(tonumber(get('created_ms')), now), id)
  bump('requeued')
end
